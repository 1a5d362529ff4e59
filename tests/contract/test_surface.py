"""What engines and streams have: the names, signatures and texts of their protocols."""

from __future__ import annotations

import inspect

import pytest

from tests.contract.engines import CLASSES


def public(cls: type) -> set[str]:
    shown = {"__enter__", "__exit__", "__aenter__", "__aexit__"}
    return {name for name in dir(cls) if not name.startswith("_") or name in shown}


def table() -> str:
    """Methods by implementations; an empty cell is a promise that is not kept."""
    lines = []
    for kind in ("EngineApi", "StreamApi"):
        classes = [cls for cls, (api, _) in CLASSES.items() if api.__name__.endswith(kind)]
        names = {name.replace("__a", "__") for cls in classes for name in public(CLASSES[cls][0])}
        lines.append(f"{kind:<14}" + " ".join(f"{cls.__name__:>15}" for cls in classes))
        for name in sorted(names):
            cells = ["yes" if has(cls, name) else "" for cls in classes]
            lines.append(f"{name:<14}" + " ".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines)


def has(cls: type, name: str) -> bool:
    api = CLASSES[cls][0]
    if name.startswith("__") and "Async" in api.__name__:
        name = name.replace("__", "__a", 1)
    return getattr(cls, name, None) is not getattr(api, name)


def test_every_class_has_what_its_protocol_says():
    print(f"\n{table()}")  # pytest -s shows it
    for cls, (api, _) in CLASSES.items():
        for name in public(api):
            assert getattr(cls, name) is not getattr(api, name), f"{cls.__name__}.{name}"


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_nothing_is_public_but_the_contract_and_what_is_listed(cls):
    api, own = CLASSES[cls]
    assert public(cls) - public(api) - own == set()


def test_objects_have_no_other_attributes_either(implementation, folder):
    with implementation.make(folder) as engine, engine.open_stream() as stream:
        for thing in (engine, stream):
            thing = thing.inner if implementation.is_async else thing
            api, own = CLASSES[type(thing)]
            attributes = {name for name in vars(thing) if not name.startswith("_")}
            assert attributes - own == set()
            assert own - attributes - public(type(thing)) == set(), "it is listed and not there"


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_signatures_are_those_of_the_protocol(cls):
    api, _ = CLASSES[cls]
    for name in public(api):
        theirs, ours = getattr(api, name), getattr(cls, name)
        if isinstance(theirs, property):
            assert isinstance(ours, property), f"{cls.__name__}.{name}"
            continue
        assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(theirs), name
        wanted, found = (
            [(p.name, p.kind, p.default) for p in inspect.signature(each).parameters.values()]
            for each in (theirs, ours)
        )
        assert found == wanted, f"{cls.__name__}.{name}"


def test_asynchronous_protocols_have_the_synchronous_ones_methods():
    apis = {api.__name__: api for api, _ in CLASSES.values()}
    for kind in ("EngineApi", "StreamApi"):
        names = {name.replace("__a", "__") for name in public(apis[f"Async{kind}"])}
        assert names == public(apis[kind])
    for api in apis.values():
        assert all(getattr(api, name).__doc__ for name in public(api) if name[0] != "_")


if __name__ == "__main__":
    print(table())
