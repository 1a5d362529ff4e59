"""Chat templates, which come from wherever models come from: rendered as transformers does it, but
within limits of time and memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from paged_stream.text.template_budget import Budget, TemplateLimitError
from paged_stream.text.template_growth import check_growth, check_operation

_MAX_TEMPLATE = 1 << 18  # characters
# Filters that give what is there already, or look at it without reading it all.
_CHEAP = {"attr", "count", "d", "default", "first", "items", "last", "length", "list", "map"} | {
    "reject",
    "rejectattr",
    "reverse",
    "safe",
    "select",
    "selectattr",
}
_GIVES_OLD = {"attr", "count", "d", "default", "first", "items", "last", "length", "safe"}


def render(template: str, variables: Mapping[str, Any]) -> str:
    """Render a template with these variables, which are texts, numbers, lists and dicts.

    Raises:
        TemplateLimitError: it takes too long, or makes too much.
        Exception: whatever the template raises.
    """
    environment, budget = _environment(), Budget(variables)
    with environment.within(budget):
        return "".join(environment.counted(_compiled(template).generate(variables)))


@functools.lru_cache(maxsize=32)
def _compiled(template: str) -> jinja2.Template:
    """Compile a template. What is constant in it is computed here, within limits of its own."""
    if len(template) > _MAX_TEMPLATE:
        raise TemplateLimitError(f"has {len(template)} characters, more than {_MAX_TEMPLATE}")
    environment = _environment()
    with environment.within(Budget()):
        return environment.from_string(template)


@functools.cache
def _environment() -> _BoundedEnvironment:
    """transformers' environment of chat templates, with limits."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    theirs = _compile_jinja_template("").environment
    ours = _BoundedEnvironment(
        trim_blocks=theirs.trim_blocks,
        lstrip_blocks=theirs.lstrip_blocks,
        extensions=[type(extension) for extension in theirs.extensions.values()],
    )
    ours.globals = {name: value for name, value in theirs.globals.items() if name != "lipsum"}
    ours.filters = {name: ours.limited(name, each) for name, each in theirs.filters.items()}
    ours.tests = {name: ours.comparing(each) for name, each in theirs.tests.items()}
    ours.finalize = ours.output
    return ours


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Every expression that makes something goes through a method here, and so does every iteration
    of a loop. What is left to the template runs in the thread that renders it."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._budgets: ContextVar[Budget] = ContextVar("template_budget")

    @contextmanager
    def within(self, budget: Budget) -> Iterator[None]:
        """Let what the block renders use this budget."""
        token = self._budgets.set(budget)
        try:
            yield
        finally:
            self._budgets.reset(token)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Instrumented(self).visit(super()._parse(source, name, filename))
        return tree

    def counted(self, pieces: Iterable[str]) -> Iterator[str]:
        """What a template writes, piece by piece, as long as it may."""
        size = 0
        for piece in pieces:
            size += len(piece)
            self._budgets.get().require(size)
            yield piece

    # What templates do

    def step(self, num_chars: int) -> bool:
        """An iteration of a loop, which may write so many characters of the template."""
        self._budgets.get().charge(num_chars)
        return True

    def made(self, value: Any) -> Any:
        """A value was made that may refer to others more than once."""
        budget = self._budgets.get()
        budget.charge(budget.measure(value).units)
        return value

    def output(self, value: Any) -> Any:
        """A value is to be written as text."""
        return self.made(value)

    def compared(self, value: Any) -> Any:
        """A value is to be compared, which reads all of it."""
        budget = self._budgets.get()
        budget.tick()
        if not isinstance(value, str):
            budget.measure(value)
        return value

    def joined(self, value: Any) -> Any:
        """A value was joined of texts, or is to be joined to others as text."""
        if not isinstance(value, str):
            return self.made(value)
        self._budgets.get().charge(len(value), replaces=True)
        return value

    def copied(self, value: Any) -> Any:
        """A value was computed from others, whose parts it shares."""
        if not isinstance(value, list):
            return self.joined(value)
        self._budgets.get().charge(8 * len(value), replaces=True)
        return value

    def call(  # self is no keyword there
        self, context: Context, function: Any, /, *args: Any, **kwargs: Any
    ) -> Any:
        """Call a function, a method or a macro."""
        if getattr(function, "__self__", None) is self:
            return function(*args)  # of the above
        budget = self._budgets.get()
        budget.tick()
        method = getattr(function, "__wrapped__", function)  # of ``str.format``
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str | bytes | int | list | tuple):
            args = tuple(list(each) if isinstance(each, Iterator) else each for each in args)
            others = [*args, *_without_internals(kwargs).values()]
            if isinstance(owner, list | tuple):
                budget.measure([owner, *others])
            check_growth(budget, method.__name__, owner, others)
        return self.made(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute with an operator."""
        check_operation(self._budgets.get(), operator, left, right)
        return self.copied(super().call_binop(context, operator, left, right))

    def limited(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that stays within the limits."""
        skipped = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def filtered(*args: Any, **kwargs: Any) -> Any:
            budget = self._budgets.get()
            budget.tick()
            if name not in _CHEAP and len(args) > skipped:
                value, *others = args[skipped:]
                value = list(value) if isinstance(value, Iterator) else value
                budget.measure(value)
                check_growth(budget, name, value, [*others, *kwargs.values()])
                args = (*args[:skipped], value, *others)
            result = function(*args, **kwargs)
            return result if name in _GIVES_OLD else self.made(result)

        return filtered

    def comparing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A test that stays within the limits."""

        @functools.wraps(function)
        def test(*args: Any, **kwargs: Any) -> Any:
            for each in args[1:]:
                self.compared(each)
                self.compared(args[0])
            return function(*args, **kwargs)

        return test


def _without_internals(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a call as the template has them."""
    return {name: value for name, value in kwargs.items() if name[:1] != "_"}


class _Instrumented(NodeTransformer):
    """Puts calls of the environment's methods into a template."""

    def __init__(self, environment: _BoundedEnvironment) -> None:
        self._environment = environment

    def _call(self, name: str, argument: nodes.Expr, lineno: int) -> nodes.Call:
        function = nodes.EnvironmentAttribute(name)
        call = nodes.Call(function, [argument], [], None, None).set_lineno(lineno)
        call.set_environment(self._environment)
        assert isinstance(call, nodes.Call)
        return call

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        data = [each for part in node.body for each in _written(part)]
        step = self._call("step", nodes.Const(sum(map(len, data))), node.lineno)
        node.body.insert(0, nodes.ExprStmt(step).set_lineno(node.lineno))
        if node.test is not None:
            step = self._call("step", nodes.Const(0), node.lineno)
            both = nodes.And(step, node.test).set_lineno(node.lineno)
            node.test = both.set_environment(self._environment)
        return node

    def _made(self, node: nodes.Expr) -> nodes.Expr:
        self.generic_visit(node)
        return self._call("made", node, node.lineno)

    visit_List = visit_Dict = _made

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        return self._made(node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        is_slice = isinstance(node.arg, nodes.Slice)
        return self._call("copied", node, node.lineno) if is_slice else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Concat:
        self.generic_visit(node)
        node.nodes = [self._call("joined", each, node.lineno) for each in node.nodes]
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = self._call("compared", node.expr, node.lineno)
        for operand in node.ops:
            operand.expr = self._call("compared", operand.expr, node.lineno)
        return node


def _written(node: nodes.Node) -> Iterator[str]:
    """Texts in a part of a template."""
    for each in [node, *node.find_all((nodes.TemplateData, nodes.Const))]:
        if isinstance(each, nodes.TemplateData):
            yield each.data
        elif isinstance(each, nodes.Const) and isinstance(each.value, str):
            yield each.value
