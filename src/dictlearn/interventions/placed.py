"""Dictionaries in place in a model, and what each forward pass does with them.

A dictionary whose sources are read one after the other (SAE, transcoders, CLT, MOLT) is encoded as
the pass goes on, so later layers see what earlier ones changed. A crosscoder's code is known only
after its last site. It comes from a pass without interventions over the same tokens, which also
gives what is held in a constrained pass, and what gates on other features ask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn

from dictlearn.interventions import codes as of_codes
from dictlearn.interventions.edits import Edit, Gate, Push, gate_of, selected
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
from dictlearn.lm.sites import blocks, resolve, site_names
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
        self._edited = [
            {self._row[id(edit)] for edit in self.edits if edit.dictionary == number}
            for number in range(len(self.dictionaries))
        ]
        self._order = {site: i for i, site in enumerate(site_names(lm.model))}
        self._check_pushes()
        self._check_reach()
        self._held = self._held_sites()
        self._frozen = self._freeze()
        self._recording = False
        self._vectors: dict[tuple[int, int, tuple[tuple[int, int], ...]], Tensor] = {}
        self._seen: Mapping[str, Tensor] = {}  # the sites that the last pass has read
        self._prompt_B: Tensor | None = None
        self._open: dict[int, Tensor] = {}  # by gate on an input, while generating: bool [B]
        self.clean: Pass | None = None
        self.now: Pass | None = None

    # --- what is where --------------------------------------------------------------------------

    @cached_property
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
            assert isinstance(push.direction, Tensor), "checked by as_edit"
            if len(push.direction) != self.lm.info.width:
                raise ValueError(
                    f"direction: has width {len(push.direction)}, and {self.lm.info.name} has "
                    f"{self.lm.info.width}"
                )

    def _check_reach(self) -> None:
        """Raises ValueError for an edit that can write nowhere, as its targets are in other blocks."""
        layers = self.setting.layers
        if layers is None:
            return
        for edit in self.edits:
            dictionary, row = self.dictionaries[edit.dictionary], self._row[id(edit)]
            reached = [s for t, s in enumerate(dictionary.targets) if row in dictionary.reads(t)]
            if all(layer(site) not in (-1, *layers) for site in reached):
                raise ValueError(
                    f"constrained={layers}: feature {edit.feature} of source {edit.source} writes to "
                    f"{', '.join(reached)} alone, which are not in these blocks"
                )

    def _check_positions(self, lengths_B: Tensor) -> None:
        """Raises ValueError for a position that no prompt of this pass has."""
        longest = int(lengths_B.max())
        for edit in self._all:
            places = edit.positions
            if isinstance(places, str | slice):
                continue
            listed = [places] if isinstance(places, int) else places
            if odd := [p for p in listed if not -longest <= p < longest]:
                raise ValueError(
                    f"positions={odd[0]}: there are {longest} tokens, 0 to {longest - 1}"
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

    def _begin(self, trunk: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        if self._recording:
            return
        self.now = self._begun(args, inputs)
        if not self._wants_clean_pass():
            return
        self.clean = Pass(self.now.keep_BP, self.now.positions_BP)
        self._recording = True
        try:
            if self._frozen is not None:
                self._frozen.holds = False
            trunk(*args, **copied(inputs))
        finally:
            self._recording = False
        if self._frozen is not None:
            self._frozen.check()
            self._frozen.holds = True
        for number in self._active:
            for row, site in enumerate(self.dictionaries[number].sources):
                if site in self._seen:  # which the next pass reads anew
                    self._x(self.clean, number, row)

    def _wants_clean_pass(self) -> bool:
        """Whether the pass that begins needs one without interventions over the same tokens first."""
        if self._frozen is not None or any(
            not self.dictionaries[d].layerwise for d in self._active
        ):
            return True
        gates = {id(edit): gate_of(edit) for edit in self._all}
        return any(
            gate is not None
            and not self._untouched(gate)
            and (gate.on == "token" or edit not in self._open)
            for edit, gate in gates.items()
        )

    def _begun(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Pass:
        begun, lengths_B = begin(self.lm, args, kwargs)
        if self._prompt_B is None or not self.setting.generating:
            self._prompt_B, self._open = lengths_B, {}
            if not self.setting.generating:
                self._check_positions(lengths_B)
        return begun

    def _reads(self) -> list[str]:
        """The sites to read: while generating, when nobody asks for codes, those that edits need."""
        sites: list[str] = []
        for number, dictionary in enumerate(self.dictionaries):
            few = self.setting.generating and self.setting.error and dictionary.layerwise
            wanted = range(len(dictionary.sources))
            if few and not dictionary.decodes_from_input:
                gates = [gate for edit in self._all if (gate := gate_of(edit))]
                asked = {self._row_of(gate) for gate in gates if gate.dictionary == number}
                wanted = sorted(self._edited[number] | asked)
            sites += [dictionary.sources[s] for s in wanted]
        return list(dict.fromkeys(sites))

    def _replacements(self) -> dict[str, Replacement]:
        """What happens at each site: it is held, written by its dictionary, then pushed."""
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
        """A target's value with what the edits write, or with the reconstruction in its place."""
        dictionary = self.dictionaries[number]
        site, layers = dictionary.targets[t], self.setting.layers
        outside = layers is not None and layer(site) not in (-1, *layers)
        held = site in self._held

        def write(_: Mapping[str, Tensor], value_BPD: Tensor) -> Tensor:
            if self._recording or number not in self._active or outside:
                return value_BPD
            source = self.clean if held or not dictionary.layerwise else self.now
            assert source is not None
            change_ND = self._change(source, number, t)
            if held and dictionary.decodes_from_input:
                skipped_ND = self._skipped(number, t)
                change_ND = skipped_ND if change_ND is None else change_ND + skipped_ND
            keep_BP = source.keep_BP.to(value_BPD.device)
            if self.setting.error:
                return value_BPD if change_ND is None else added(value_BPD, keep_BP, change_ND)
            y_hat_ND = self._reconstruction(source, number, t)
            return put(value_BPD, keep_BP, y_hat_ND if change_ND is None else y_hat_ND + change_ND)

        return write

    def _change(self, source: Pass, number: int, t: int) -> Tensor | None:
        """What the edits of a code change of a target: [N, D], or None if they change nothing."""
        dictionary = self.dictionaries[number]
        decoder, changed = (
            dictionary.decoder,
            [r for r in dictionary.reads(t) if r in self._edited[number]],
        )
        by_row = [self._changes(source, number, row) for row in changed]
        columns = {key: change for some in by_row for key, change in some.items()}
        if not columns:
            return None
        if decoder.writes_directions:
            which = number, t, tuple(columns)
            if which not in self._vectors:  # [E, D], the same at every step of a generation
                vectors = [decoder.written(t, row, slice(f, f + 1)) for row, f in columns]
                self._vectors[which] = torch.cat(vectors)
            return torch.stack(list(columns.values()), 1) @ self._vectors[which]
        codes, x = {}, {}
        for s in dictionary.reads(t):
            mine = {(0, f): change for (row, f), change in columns.items() if row == s}
            codes[s] = of_codes.code_of(mine, self._code(source, number, s))
            x[s] = self._x(source, number, s)
        return decoder.target(t, codes, x)

    def _reconstruction(self, source: Pass, number: int, t: int) -> Tensor:
        dictionary = self.dictionaries[number]
        if not dictionary.layerwise:
            return dictionary.decode(self._code(source, number, 0), self._stacked(source, number))[
                :, t
            ]
        reads = dictionary.reads(t)
        codes = {s: self._code(source, number, s) for s in reads}
        return dictionary.decode_target(t, codes, {s: self._x(source, number, s) for s in reads})

    def _skipped(self, number: int, t: int) -> Tensor:
        """What a change of the input does to a held target past the features, by skip or maps."""
        dictionary, clean = self.dictionaries[number], self.clean
        assert clean is not None and self.now is not None
        codes = {s: self._code(clean, number, s) for s in dictionary.reads(t)}
        now_ND, clean_ND = (
            dictionary.decode_target(t, codes, {s: self._x(source, number, s) for s in codes})
            for source in (self.now, clean)
        )
        return now_ND - clean_ND

    # --- codes ----------------------------------------------------------------------------------

    def _x(self, source: Pass, number: int, s: int) -> Tensor:
        """The rows of a source site, [N, D], as the pass has read them."""
        if (number, s) not in source.x:
            dictionary = self.dictionaries[number]
            site_BPD = self._seen[dictionary.sources[s]]
            source.x[number, s] = rows(site_BPD, source.keep_BP, dictionary)
        return source.x[number, s]

    def _stacked(self, source: Pass, number: int) -> Tensor:
        n_sources = len(self.dictionaries[number].sources)
        return torch.stack([self._x(source, number, s) for s in range(n_sources)], dim=1)

    def _code(self, source: Pass, number: int, row: int) -> Code:
        """The code of a row's source, or, if it is known only as a whole, the whole code."""
        dictionary = self.dictionaries[number]
        row = row if dictionary.layerwise else 0
        if (number, row) not in source.codes:
            source.codes[number, row] = (
                dictionary.encode_source(self._x(source, number, row), row).code
                if dictionary.layerwise
                else dictionary.encode(self._stacked(source, number))
            )
        return source.codes[number, row]

    def _old(self, source: Pass, number: int, row: int, feature: int) -> Tensor:
        """A feature's activation before edits, [N]."""
        inner = 0 if self.dictionaries[number].layerwise else row
        return of_codes.values_of(self._code(source, number, row), inner, feature)

    def _changes(self, source: Pass, number: int, row: int) -> Columns:
        """New minus old activations of the features of a row, where edits change any."""
        if (number, row) not in source.changes:
            old: Columns = {}
            new: Columns = {}
            for edit in self.edits:
                if (edit.dictionary, self._row[id(edit)]) != (number, row):
                    continue
                key = row, edit.feature
                if key not in old:
                    old[key] = new[key] = self._old(source, number, row, edit.feature)
                mask_N = self._mask(edit)[source.keep_BP].to(old[key].device)
                if edit.when == "token":
                    mask_N = mask_N & (old[key] != 0)
                new[key] = torch.where(mask_N, edit.changed(new[key]), new[key])
            source.new[number, row] = new
            changes = {key: value - old[key] for key, value in new.items()}
            changed = {key: change for key, change in changes.items() if bool(change.any())}
            source.changes[number, row] = changed
        return source.changes[number, row]

    def _mask(self, edit: Edit | Push) -> Tensor:
        """bool [B, P]: the tokens that an intervention is for. Its gate on its own token comes later."""
        now = self.now
        assert now is not None and self._prompt_B is not None
        mask_BP = now.keep_BP & selected(edit.positions, now.positions_BP, self._prompt_B)
        gate = gate_of(edit)
        if gate is None:
            return mask_BP
        if gate.on == "token":
            return mask_BP & self._fires(gate)
        if id(edit) not in self._open:
            prompt_BP = now.positions_BP < self._prompt_B[:, None]
            self._open[id(edit)] = (self._fires(gate) & prompt_BP).any(1)
        return mask_BP & self._open[id(edit)][:, None]

    def _fires(self, gate: Gate) -> Tensor:
        """bool [B, P]: where a gate's feature fires in the pass without interventions."""
        source = self.now if self._untouched(gate) else self.clean
        assert source is not None
        fires_N = self._old(source, gate.dictionary, self._row_of(gate), gate.feature) != 0
        fires_BP = torch.zeros_like(source.keep_BP)
        fires_BP[source.keep_BP] = fires_N.to(fires_BP.device)
        return fires_BP

    def _untouched(self, gate: Gate) -> bool:
        """Whether no intervention writes before the gate's source: it is then the same in both passes."""
        dictionary = self.dictionaries[gate.dictionary]
        if not dictionary.layerwise:
            return False
        read = self._order.get(dictionary.sources[self._row_of(gate)])
        written = [push.site for push in self.pushes]
        for number in self._active:
            written += self.dictionaries[number].targets
        orders = [self._order.get(site) for site in written]
        return read is not None and all(order is not None and order >= read for order in orders)

    # --- results --------------------------------------------------------------------------------

    def code(self, number: int) -> Code:
        """A dictionary's code in the last pass, edits applied, with a row for every position."""
        now, dictionary = self.now, self.dictionaries[number]
        assert now is not None
        if not dictionary.layerwise:
            whole = self._code(now, number, 0)
            new = (
                [self.clean.new.get((number, row), {}) for row in self._edited[number]]
                if self.clean
                else []
            )
            columns = {key: values for some in new for key, values in some.items()}
            return of_codes.spread(of_codes.replaced(whole, columns), now.keep_BP)
        parts = []
        for row in range(dictionary.code_sources):
            self._changes(now, number, row)
            new_columns = {(0, f): values for (_, f), values in now.new[number, row].items()}
            parts.append(of_codes.replaced(self._code(now, number, row), new_columns))
        return of_codes.spread(of_codes.joined(parts), now.keep_BP)
