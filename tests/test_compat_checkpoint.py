"""The private interfaces that mmgcvit.checkpoint uses exist and behave as expected."""

from __future__ import annotations

import copy
import io
import pickle
import zipfile

import pytest
import torch
from torch import nn

from mmgcvit import compat


def record(module: nn.Module, state_dict: dict, prefix: str, *rest: object) -> None:
    module.seen = [*getattr(module, "seen", []), prefix]
    for name in [name for name in state_dict if name.startswith(f"{prefix}old.")]:
        state_dict[name.replace("old.", "new.")] = state_dict.pop(name)


class Child(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.new = nn.Linear(2, 2)


def test_pre_hook_runs_before_its_module_and_may_rename(tmp_path):
    model = nn.Sequential(nn.Linear(1, 1), Child())
    for _ in range(2):
        compat.add_load_state_dict_pre_hook(model[1], record)
    assert compat.load_state_dict_pre_hooks(model[1]) == [record]
    assert compat.load_state_dict_pre_hooks(model) == []
    state = {name.replace("new.", "old."): value + 1 for name, value in model.state_dict().items()}
    torch.save(model, tmp_path / "model.pth")
    for got in (model, copy.deepcopy(model), torch.load(tmp_path / "model.pth", weights_only=False)):
        got.load_state_dict(state)  # strict: names are changed before they are compared
        assert got[1].seen == ["1."]
        assert torch.equal(got[1].new.weight, state["1.old.weight"])
        del got[1].seen


def test_pre_hook_of_child_sees_its_part_of_the_state_dict():
    """Children are loaded after their parent's hook, with its changes."""
    model = nn.Sequential(Child())
    seen: dict[str, torch.Tensor] = {}
    compat.add_load_state_dict_pre_hook(model, lambda module, state, *_: state.update({"0.extra": torch.ones(1)}))
    compat.add_load_state_dict_pre_hook(model[0], lambda module, state, *_: seen.update(state))
    model.load_state_dict(model.state_dict(), strict=False)
    assert {"0.extra", "0.new.weight", "0.new.bias"} <= seen.keys()


class Traced(compat.PythonUnpickler):
    dispatch = dict(compat.PythonUnpickler.dispatch)  # noqa: RUF012

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.steps: list[tuple[str, object]] = []

    def load_reduce(self) -> None:
        self.steps.append(("reduce", self.stack[-2]))
        super().load_reduce()

    def load_build(self) -> None:
        self.steps.append(("build", type(self.stack[-2])))
        super().load_build()

    def load_newobj(self) -> None:
        self.steps.append(("newobj", self.stack[-2]))
        super().load_newobj()

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.NEWOBJ[0]] = load_newobj


class Plain:
    pass


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_every_step_of_the_unpickler_can_be_checked(protocol: int):
    thing = Plain()
    thing.x = complex(1, 2)  # pickled as a call of complex
    unpickler = Traced(io.BytesIO(pickle.dumps(thing, protocol)))
    assert unpickler.load().x == complex(1, 2)
    assert unpickler.steps == [("newobj", Plain), ("reduce", complex), ("build", Plain)]


def test_names_are_resolved_by_find_class():
    class Refusing(compat.PythonUnpickler):
        def find_class(self, module: str, name: str) -> object:
            raise LookupError(f"{module}.{name}")

    with pytest.raises(LookupError, match=r"collections\.OrderedDict"):
        Refusing(io.BytesIO(pickle.dumps(__import__("collections").OrderedDict(a=1)))).load()


def test_state_dict_keeps_versions():
    model = nn.Sequential(nn.BatchNorm1d(2))
    versions = []
    compat.add_load_state_dict_pre_hook(model[0], lambda module, state, prefix, metadata, *_: versions.append(metadata))
    state = model.state_dict()
    for source in (state, dict(state)):
        model.load_state_dict(compat.with_versions(dict(state), source))
    assert versions == [dict(version=2), {}]
    model.load_state_dict(compat.with_versions(dict(state), state), assign=True)
    assert state._metadata["0"] == dict(version=2)  # without the request to assign


def test_size_of_a_zip_directory(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", "content")
    content = (tmp_path / "a.zip").read_bytes()
    with (tmp_path / "a.zip").open("rb") as file:
        assert compat.zip_directory_size(file) == content.index(b"PK\x05\x06") - content.index(b"PK\x01\x02")
    with pytest.raises(zipfile.BadZipFile):
        compat.zip_directory_size(io.BytesIO(b"no zip file"))


def test_loaders_of_mmengine():
    loaders = compat.checkpoint_loaders()
    assert {"", "http://", "https://", "torchvision://", "open-mmlab://", "pavi://"} <= loaders.keys()
    assert all(map(callable, loaders.values()))
    loaders.clear()
    assert compat.checkpoint_loaders()  # it was a copy


def test_home_of_mmengine(monkeypatch, tmp_path):
    monkeypatch.setenv("MMENGINE_HOME", str(tmp_path))
    assert compat.mmengine_home() == tmp_path
