"""One file per verb: `main(cfg) -> exit status`. It and conf/<verb>.yaml are the whole addition."""
