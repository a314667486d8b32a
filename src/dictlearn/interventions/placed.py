"""Dictionaries in place in a model, and what each forward pass does with them.

A dictionary whose sources are read one after the other (SAE, transcoders, CLT, MOLT) is encoded as
the pass goes on, so later layers see what earlier ones changed. A crosscoder's code is known only
after its last site. It comes from a pass without interventions over the same tokens, which also
gives what is held in a constrained pass, and what gates on other features ask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, final

import torch
from torch import Tensor, nn

from dictlearn.interventions import codes as of_codes
from dictlearn.interventions.edits import Edit, Gate, Push, on_input, selected
from dictlearn.interventions.passes import (
    RESIDUAL,
    Columns,
    Pass,
    Setting,
    added,
    begin,
    copied,
    in_turn,
    layer,
    put,
    rows,
)
from dictlearn.lm.frozen import Frozen
from dictlearn.lm.language_model import OTHER, LanguageModel
from dictlearn.lm.patch import Replacement, patched
from dictlearn.lm.sites import blocks, resolve
from dictlearn.names import code_names
from dictlearn.types import Code, DictionaryLike


@final
class Placed:
    """Dictionaries and interventions in a model; `attached()` puts them into its passes."""

    def __init__(
        self,
        lm: LanguageModel,
        dictionaries: Sequence[DictionaryLike],
        edits: Sequence[Edit | Push] = (),
        setting: Setting | None = None,
    ) -> None:
        self.lm, self.dictionaries = lm, list(dictionaries)
        self.setting = setting or Setting()
        self._check_places()
        self.edits = [edit for edit in edits if isinstance(edit, Edit)]
        self.pushes = [edit for edit in edits if isinstance(edit, Push)]
        self._row = {id(edit): self._row_of(edit) for edit in [*self.edits, *self._gates()]}
        self._check_pushes()
        self._held = self._held_sites()
        self._frozen = self._freeze()
        self._recording = False
        self._seen: Mapping[str, Tensor] = {}  # the sites that the last pass has read
        self._prompt_B: Tensor | None = None
        self._open: dict[int, Tensor] = {}  # by gate on an input, while generating: bool [B]
        self.clean: Pass | None = None
        self.now: Pass | None = None

    # --- what is where --------------------------------------------------------------------------

    @property
    def _active(self) -> list[int]:
        """The dictionaries that a pass has to encode for what it computes."""
        if not self.setting.error:
            return list(range(len(self.dictionaries)))
        named = {edit.dictionary for edit in self.edits} | {g.dictionary for g in self._gates()}
        if self.setting.layers is not None:  # what they write is held, apart from a skip
            named |= {n for n, d in enumerate(self.dictionaries) if d.decodes_from_input}
        return sorted(named)

    def _gates(self) -> list[Gate]:
        return [edit.when for edit in self._all if isinstance(edit.when, Gate)]

    @property
    def _all(self) -> list[Edit | Push]:
        return [*self.edits, *self.pushes]

    def _check_places(self) -> None:
        owners: dict[str, int] = {}
        for number, dictionary in enumerate(self.dictionaries):
            if dictionary.width != self.lm.info.width:
                raise ValueError(
                    f"dictionary {number}: has width {dictionary.width}, and {self.lm.info.name} has "
                    f"{self.lm.info.width}"
                )
            for site in (*dictionary.sources, *dictionary.targets):
                if site.startswith(OTHER):
                    raise ValueError(f"dictionary {number}: {site} is in another model")
                resolve(self.lm.model, site, self.lm.info)
            for site in dictionary.targets:
                if site in owners:
                    raise ValueError(
                        f"dictionaries {owners[site]} and {number} both write {site}: the second would "
                        "replace what the first one wrote; put one of them in place"
                    )
                owners[site] = number

    def _row_of(self, edit: Edit | Gate) -> int:
        """The row of the code that an edit's source is. Raises ValueError if there is none."""
        if not 0 <= edit.dictionary < len(self.dictionaries):
            n = len(self.dictionaries)
            raise ValueError(f"dictionary={edit.dictionary}: {n} are in place, counted from 0")
        dictionary = self.dictionaries[edit.dictionary]
        if type(edit.feature) is not int or not 0 <= edit.feature < dictionary.n_features:
            raise ValueError(
                f"feature={edit.feature!r}: want one from 0 to {dictionary.n_features - 1}"
            )
        names = code_names(dictionary.sources, dictionary.code_sources)
        row = names.index(edit.source) if edit.source in names else edit.source
        if type(row) is not int or not 0 <= row < len(names):
            raise ValueError(
                f"source={edit.source!r}: want one from 0 to {len(names) - 1}, or {', '.join(names)}"
            )
        return row

    def _check_pushes(self) -> None:
        for push in self.pushes:
            resolve(self.lm.model, push.site, self.lm.info)
            if len(push.direction) != self.lm.info.width:
                raise ValueError(
                    f"direction: has width {len(push.direction)}, and {self.lm.info.name} has "
                    f"{self.lm.info.width}"
                )

    def _held_sites(self) -> list[str]:
        """Outputs of the held MLPs, and the targets there that aren't the residual stream."""
        if self.setting.layers is None:
            return []
        n_layers = len(blocks(self.lm.model)[1])
        layers = [layer for layer in self.setting.layers if 0 <= layer < n_layers]
        outputs = [f"mlp_out.{layer}" for layer in layers]
        targets = [site for d in self.dictionaries for site in d.targets]
        inner = [t for t in targets if t.partition(".")[0] not in RESIDUAL]
        return list(dict.fromkeys([*outputs, *(t for t in inner if layer(t) in layers)]))

    def _freeze(self) -> Frozen | None:
        layers = self.setting.layers
        if layers is None and not self.setting.attention:
            return None
        n_layers = len(blocks(self.lm.model)[1])
        return Frozen(self.lm, norms=layers is not None and set(range(n_layers)) <= set(layers))

    # --- a pass ---------------------------------------------------------------------------------

    @contextmanager
    def attached(self) -> Iterator[None]:
        """All forward passes of the model within this context have the dictionaries in place."""
        self._prompt_B, self._open = None, {}
        before = self.lm.trunk.register_forward_pre_hook(self._begin, with_kwargs=True)
        try:
            with (  # a norm's scale is held before its output, if that is a site, is written
                self._frozen.attached() if self._frozen else nullcontext(),
                patched(self.lm, self._replacements(), self._reads()) as self._seen,
            ):
                yield
        finally:
            before.remove()

    def _begin(self, trunk: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._recording:
            return
        self.now = self._begun(args, kwargs)
        if not self._wants_clean_pass():
            return
        self.clean = Pass(self.now.keep_BP, self.now.positions_BP)
        self._recording = True
        try:
            if self._frozen is not None:
                self._frozen.holds = False
            trunk(*args, **copied(kwargs))
        finally:
            self._recording = False
        if self._frozen is not None:
            self._frozen.check()
            self._frozen.holds = True
        for number in self._active:
            self._encode_all(number, self.clean)

    def _wants_clean_pass(self) -> bool:
        """Whether the pass that begins needs one without interventions over the same tokens first."""
        if self._frozen is not None or any(
            not self.dictionaries[d].layerwise for d in self._active
        ):
            return True
        if any(gate.on == "token" for gate in self._gates()):
            return True
        return any(on_input(edit) and id(edit) not in self._open for edit in self._all)

    def _begun(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Pass:
        begun, lengths_B = begin(self.lm, args, kwargs)
        if self._prompt_B is None or not self.setting.generating:
            self._prompt_B, self._open = lengths_B, {}
        return begun

    def _reads(self) -> list[str]:
        return list(dict.fromkeys(site for d in self.dictionaries for site in d.sources))

    def _replacements(self) -> dict[str, Replacement]:
        """By site: held, then written by its dictionary, then pushed along directions."""
        steps: dict[str, list[Replacement]] = {}
        for site in self._held:
            steps.setdefault(site, []).append(self._hold(site))
        for number, dictionary in enumerate(self.dictionaries):
            for t, site in enumerate(dictionary.targets):
                steps.setdefault(site, []).append(self._write(number, t))
        for push in self.pushes:
            steps.setdefault(push.site, []).append(self._push(push))
        return {site: in_turn(list_of) for site, list_of in steps.items()}

    def _hold(self, site: str) -> Replacement:
        def hold(_: Mapping[str, Tensor], value_BPD: Tensor) -> Tensor:
            assert self.clean is not None
            if self._recording:
                self.clean.sites[site] = value_BPD
                return value_BPD
            return self.clean.sites[site]

        return hold

    def _push(self, push: Push) -> Replacement:
        def push_site(_: Mapping[str, Tensor], value_BPD: Tensor) -> Tensor:
            if self._recording:
                return value_BPD
            mask_BP = self._mask(push).to(value_BPD.device)
            if not bool(mask_BP.any()):
                return value_BPD
            new_BPD = push.changed(value_BPD.float()).to(value_BPD.dtype)
            return torch.where(mask_BP[..., None], new_BPD, value_BPD)

        return push_site

    def _write(self, number: int, t: int) -> Replacement:
        dictionary = self.dictionaries[number]
        site, layers = dictionary.targets[t], self.setting.layers
        outside = layers is not None and layer(site) not in (-1, *layers)

        def write(seen: Mapping[str, Tensor], value_BPD: Tensor) -> Tensor:
            now = self.now
            assert now is not None
            if self._recording or number not in self._active or outside:
                return value_BPD
            if not dictionary.layerwise:
                return self._write_known(number, t, value_BPD)
            held = site in self._held
            for s in dictionary.reads(t):
                if (number, s) not in now.x:
                    now.x[number, s] = rows(seen[dictionary.sources[s]], now.keep_BP, dictionary)
                if not held:
                    self._encode(number, s)
            source = self.clean if held else now
            assert source is not None
            difference = {s: self._difference(source, number, s) for s in dictionary.reads(t)}
            skipped_ND = self._skipped(number, t) if held else None
            return self._written(number, t, value_BPD, difference, source, skipped_ND)

        return write

    def _written(
        self,
        number: int,
        t: int,
        value_BPD: Tensor,
        difference: Mapping[int, Code],
        source: Pass,
        skipped_ND: Tensor | None,
    ) -> Tensor:
        """The target's value with what the edits write, or with the reconstruction in its place."""
        dictionary = self.dictionaries[number]
        x = {s: source.x[number, s] for s in difference}
        changed = any(len(code.features) for code in difference.values())
        change_ND = dictionary.decoder.target(t, difference, x) if changed else None
        if skipped_ND is not None:
            change_ND = skipped_ND if change_ND is None else change_ND + skipped_ND
        keep_BP = source.keep_BP.to(value_BPD.device)
        if not self.setting.error:
            codes = {s: source.codes[number, s] for s in difference}
            y_hat_ND = dictionary.decode_target(t, codes, x)
            return put(value_BPD, keep_BP, y_hat_ND if change_ND is None else y_hat_ND + change_ND)
        return value_BPD if change_ND is None else added(value_BPD, keep_BP, change_ND)

    def _write_known(self, number: int, t: int, value_BPD: Tensor) -> Tensor:
        """The same for a code that is known as a whole from the clean pass."""
        if number not in self._active:
            return value_BPD
        dictionary, clean = self.dictionaries[number], self.clean
        assert clean is not None
        x_NSD = self._stacked(number, clean)
        difference = self._difference(clean, number, 0)
        keep_BP = clean.keep_BP.to(value_BPD.device)
        change_NTD = (
            dictionary.decoder.without_bias(difference, x_NSD) if len(difference.features) else None
        )
        if not self.setting.error:
            y_hat_NTD = dictionary.decode(clean.codes[number, 0], x_NSD)
            total = y_hat_NTD if change_NTD is None else y_hat_NTD + change_NTD
            return put(value_BPD, keep_BP, total[:, t])
        return value_BPD if change_NTD is None else added(value_BPD, keep_BP, change_NTD[:, t])

    # --- codes ----------------------------------------------------------------------------------

    def _encode(self, number: int, s: int) -> None:
        """Encodes a source of the pass at hand, and applies its edits."""
        now = self.now
        assert now is not None
        if (number, s) not in now.codes:
            dictionary = self.dictionaries[number]
            now.codes[number, s] = dictionary.encode_source(now.x[number, s], s).code
            self._edit(now, number, s)

    def _encode_all(self, number: int, clean: Pass) -> None:
        """Encodes every source of the clean pass."""
        dictionary = self.dictionaries[number]
        for s, site in enumerate(dictionary.sources):
            clean.x[number, s] = rows(self._seen[site], clean.keep_BP, dictionary)
        if not dictionary.layerwise:
            clean.codes[number, 0] = dictionary.encode(self._stacked(number, clean))
        else:
            for s in range(dictionary.code_sources):
                code = dictionary.encode_source(clean.x[number, s], s).code
                clean.codes[number, s] = code

    def _stacked(self, number: int, source: Pass) -> Tensor:
        n_sources = len(self.dictionaries[number].sources)
        return torch.stack([source.x[number, s] for s in range(n_sources)], dim=1)

    def _difference(self, source: Pass, number: int, s: int) -> Code:
        """What the edits of a source change of its code."""
        if (number, s) not in source.difference:
            self._edit(source, number, s)
        return source.difference[number, s]

    def _edit(self, source: Pass, number: int, s: int) -> None:
        """Computes the new values of edited features, from the code of a source."""
        code = source.codes[number, s]
        whole = not self.dictionaries[number].layerwise
        old: Columns = {}
        new: Columns = {}
        for edit in self.edits:
            row = self._row[id(edit)]
            if edit.dictionary != number or not (whole or row == s):
                continue
            key = (row if whole else 0), edit.feature
            if key not in old:
                old[key] = new[key] = of_codes.values_of(code, *key)
            mask_N = self._mask(edit)[source.keep_BP].to(code.values.device)
            if edit.when == "token":
                mask_N = mask_N & (old[key] != 0)
            new[key] = torch.where(mask_N, edit.changed(new[key]), new[key])
        source.new[number, s] = new
        changes = {key: values - old[key] for key, values in new.items()}
        source.difference[number, s] = of_codes.code_of(changes, code)

    def _mask(self, edit: Edit | Push) -> Tensor:
        """bool [B, P]: the tokens that an intervention is for. Gates on its own token come later."""
        now = self.now
        assert now is not None and self._prompt_B is not None
        mask_BP = now.keep_BP & selected(edit.positions, now.positions_BP, self._prompt_B)
        gate = edit.when
        if isinstance(edit, Edit) and edit.when == "input":
            gate = Gate(edit.feature, edit.source, edit.dictionary, "input")
        if not isinstance(gate, Gate):
            return mask_BP
        fires_BP = self._fires(gate, self._row_of(gate))
        if gate.on == "token":
            return mask_BP & fires_BP
        if id(edit) not in self._open:
            prompt_BP = now.positions_BP < self._prompt_B[:, None]
            self._open[id(edit)] = (fires_BP & prompt_BP).any(1)
        return mask_BP & self._open[id(edit)][:, None]

    def _fires(self, gate: Gate, row: int) -> Tensor:
        clean = self.clean
        assert clean is not None
        whole = not self.dictionaries[gate.dictionary].layerwise
        code = clean.codes[gate.dictionary, 0 if whole else row]
        fires_N = of_codes.values_of(code, row if whole else 0, gate.feature) != 0
        fires_BP = torch.zeros_like(clean.keep_BP)
        fires_BP[clean.keep_BP] = fires_N.to(fires_BP.device)
        return fires_BP

    def _skipped(self, number: int, t: int) -> Tensor | None:
        """What a change of the input does to a held target past the features, by skip or maps."""
        dictionary, clean, now = self.dictionaries[number], self.clean, self.now
        assert clean is not None and now is not None
        if not dictionary.decodes_from_input:
            return None
        codes = {s: clean.codes[number, s] for s in dictionary.reads(t)}
        with_x = [
            dictionary.decode_target(t, codes, {s: source.x[number, s] for s in codes})
            for source in (now, clean)
        ]
        return with_x[0] - with_x[1]

    # --- results --------------------------------------------------------------------------------

    def code(self, number: int) -> Code:
        """A dictionary's code in the last pass, edits applied, with a row for every position."""
        now, dictionary = self.now, self.dictionaries[number]
        assert now is not None
        for s, site in enumerate(dictionary.sources):
            now.x.setdefault((number, s), rows(self._seen[site], now.keep_BP, dictionary))
        if not dictionary.layerwise:
            now.codes[number, 0] = dictionary.encode(self._stacked(number, now))
            source = self.clean if self.clean is not None else now
            new = source.new.get((number, 0), {})
            return of_codes.spread(of_codes.replaced(now.codes[number, 0], new), now.keep_BP)
        parts = []
        for s in range(dictionary.code_sources):
            self._encode(number, s)
            parts.append(of_codes.replaced(now.codes[number, s], now.new[number, s]))
        return of_codes.spread(of_codes.joined(parts), now.keep_BP)
