"""One file per verb of the command line: `main(cfg) -> exit code`. The file and its conf/<verb>.yaml are the registration."""
