"""What the class statement of a client state sets up: its fields, options, and their checks."""

from __future__ import annotations

import copy
import dataclasses
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, get_origin

import msgspec
from msgspec import inspect

from celery_statekit.errors import InvalidDefinition, InvalidId
from celery_statekit.record import check_id
from celery_statekit.states import Flow, States

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_: Any) -> Any:
        """Nothing at run time; ``typing`` has it from Python 3.11 on."""
        return lambda cls: cls


#: The states between which an action is taken.
ACTING: Final = ("READY", "IN_PROGRESS", "SUCCESS", "FAILURE")

#: Said by class options, or by the library: an attribute of such a name would hide it.
_FACTS: Final = frozenset(
    (
        *("client_id", "state", "states", "version", "kind", "flow"),
        *("available_states", "next_states", "moves", "actions"),
    )
)


@dataclass(frozen=True)
class Move:
    """A client's way from one state to another, not stored yet."""

    from_state: str
    to_state: str
    #: Why, in words.
    reason: str = ""


@dataclass_transform(kw_only_default=True, eq_default=False, field_specifiers=(field,))
class Declared:
    """The base of ``ClientState``, whose fields and those of its subclasses it sets up."""

    #: Stands for the class in keys and errors: its name, or the option ``kind=``.
    kind: ClassVar[str]
    #: Of the documents that this class writes; it reads older ones through ``upgrade``.
    version: ClassVar[int] = 1
    #: The Enum class whose members are the states.
    states: ClassVar[type[Enum]]
    #: Names that are no names for a field: those of ClientState itself.
    _taken: ClassVar[frozenset[str]] = frozenset()
    #: Names of the fields that stand in the document beside ``client_id``.
    _stored: ClassVar[tuple[str, ...]]
    #: Whether the types of all fields are resolved and found good.
    _resolved: ClassVar[bool]
    #: Whether a field may hold a Decimal, of which msgspec reads NaN and infinities too.
    _decimals: ClassVar[bool]

    _state: str
    _moves: tuple[Move, ...] = ()
    #: Fields of the document that this class does not declare.
    _unknown: Mapping[str, Any] = MappingProxyType({})

    def __init_subclass__(
        cls,
        *,
        states: type[Enum] | None = None,
        version: int | None = None,
        kind: str | None = None,
        **options: Any,
    ) -> None:
        super().__init_subclass__(**options)
        _check_names(cls)
        try:
            _copy_defaults(cls)
            dataclass(eq=False, repr=False, kw_only=True)(cls)
        except (TypeError, ValueError) as exc:
            raise InvalidDefinition(
                str(exc), cls.__name__, cls.__name__, "dataclass fields"
            ) from exc
        # Its own, so that a second @dataclass, by mistake, puts none there that shows the fields.
        cls.__repr__ = cls.__repr__  # type: ignore[method-assign]
        cls.kind = _checked_kind(cls, kind)
        cls.version = _checked_version(cls, version)
        cls.states = cls.states if states is None else states
        flow = Flow.of(cls.states)
        cls._state = flow.initial
        left_out = {"client_id"} if set(ACTING) <= set(flow.states) else {"client_id", "actions"}
        names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
        cls._stored = tuple(name for name in names if name not in left_out)
        if Declared in cls.__bases__:
            cls._taken = _FACTS.union(dir(cls))
        cls._resolved = False
        resolve(cls, at_once=False)


def annotations_of(owner: Any) -> dict[str, Any]:
    """The annotations of a class or function itself, resolved as far as they can be."""
    if sys.version_info >= (3, 14):
        from annotationlib import Format, get_annotations  # noqa: PLC0415 - new in 3.14

        return get_annotations(owner, format=Format.FORWARDREF)
    found = vars(owner).get("__annotations__") if isinstance(owner, type) else owner.__annotations__
    return dict(found or {})


def _check_names(cls: type[Declared]) -> None:
    declared = annotations_of(cls)
    fields = {name for name in declared if not _is_class_variable(declared[name])}
    hidden = sorted((_FACTS & {*declared, *vars(cls)}) | (cls._taken & fields))
    if hidden and cls._taken:
        raise InvalidDefinition(
            f"{cls.__name__} would hide what a client state has",
            f"{cls.__name__}.{hidden[0]}",
            hidden[0],
            f"other names; states, version and kind are options of the class: "
            f"class {cls.__name__}(ClientState, states=..., version=...)",
        )


def _is_class_variable(annotation: object) -> bool:
    if isinstance(annotation, str):
        return re.match(r"(\w+\.)?ClassVar\b", annotation) is not None
    return annotation is ClassVar or get_origin(annotation) is ClassVar


def _copy_defaults(cls: type[Declared]) -> None:
    """Give each client its own copy of a default that can be changed."""
    for name, annotation in annotations_of(cls).items():
        default = vars(cls).get(name)
        if isinstance(default, dataclasses.Field) or _is_class_variable(annotation):
            continue
        own = copy.deepcopy(default)
        if own is not default:
            setattr(cls, name, field(default_factory=_Copies(own)))


class _Copies:
    """Makes a copy of one value at each call."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __call__(self) -> Any:
        return copy.deepcopy(self.value)


def _checked_kind(cls: type[Declared], kind: str | None) -> str:
    try:
        return check_id(cls.__name__ if kind is None else kind, "kind")
    except InvalidId as exc:
        path = f"{cls.__name__}.kind"
        raise InvalidDefinition(f"kind: {exc.what}", path, kind, exc.allowed) from exc


def _checked_version(cls: type[Declared], version: int | None) -> int:
    if version is None:
        return cls.version
    if type(version) is not int or not 1 <= version < 2**63:
        path = f"{cls.__name__}.version"
        raise InvalidDefinition("no version", path, version, "an int of 1 or more")
    return version


# --- the types of the fields ----------------------------------------------------------------------


def resolve(cls: type[Declared], *, at_once: bool = True) -> None:
    """Check the types of the fields, once.

    Args:
        at_once: False leaves it for later where an annotation speaks of a name that is not
            defined yet.

    Raises:
        InvalidDefinition: msgspec cannot convert a type, or a name is not defined.
    """
    if cls._resolved:
        return
    name = cls.__name__
    try:
        info = inspect.type_info(cls)
    except (NameError, AttributeError) as exc:
        if not at_once:
            return
        rule = "types that can be reached from the top level of the module"
        fault = f"an annotation of {name} cannot be resolved ({exc})"
        raise InvalidDefinition(fault, name, str(exc), rule) from exc
    except Exception as exc:
        fault = f"a field of {name} cannot be converted ({exc})"
        raise InvalidDefinition(
            fault, name, type(exc).__name__, "types that msgspec knows"
        ) from exc
    assert isinstance(info, inspect.DataclassType)
    cls._decimals = False
    for member in info.fields:
        for part in _parts(member.type, []):
            cls._decimals |= isinstance(part, inspect.DecimalType)
            if fault := _fault(part):
                path = f"{name}.{member.name}"
                rule = "types that msgspec knows and JSON has a form for"
                raise InvalidDefinition(
                    f"{path} cannot be stored: {fault}", path, member.name, rule
                )
    cls._resolved = True


def _parts(info: inspect.Type, seen: list[inspect.Type]) -> Iterator[inspect.Type]:
    """``info`` and every type inside it."""
    if any(info is other for other in seen):
        return
    seen.append(info)
    yield info
    for name in info.__struct_fields__:
        inside = getattr(info, name)
        for part in inside if isinstance(inside, tuple) else (inside,):
            part_type = part.type if isinstance(part, inspect.Field) else part
            if isinstance(part_type, inspect.Type):
                yield from _parts(part_type, seen)


def _fault(info: inspect.Type) -> str:  # noqa: PLR0911 - one for each fault
    """Why nothing of this type can be stored, or ""."""
    cls: Any = getattr(info, "cls", None)
    cls = get_origin(cls) or cls
    if isinstance(cls, type):
        if issubclass(cls, Declared):
            return f"{cls.__name__} is a client of its own: keep its client_id"
        if issubclass(cls, States):
            return f"a member of {cls.__name__} would be stored by its label: use a plain Enum"
    if isinstance(info, inspect.CustomType) and not (
        isinstance(cls, type) and issubclass(cls, Enum)  # Django's Choices are CustomType
    ):
        return f"{getattr(cls, '__name__', cls)} is no type that msgspec converts"
    if isinstance(info, (inspect.StructType, inspect.RawType, inspect.ExtType)):
        return "msgspec's own types are not read from an object: use a dataclass"
    if isinstance(info, inspect.DataclassType) and not dataclasses.is_dataclass(cls):
        return f"{cls.__name__} is no dataclass"
    if isinstance(info, inspect.DictType) and not _is_text(info.key_type):
        return "the keys of a JSON object are text"
    return ""


def _is_text(info: inspect.Type) -> bool:
    if isinstance(info, inspect.LiteralType):
        return all(isinstance(value, str) for value in info.values)
    if isinstance(info, (inspect.EnumType, inspect.CustomType)):
        return issubclass(info.cls, str)
    return isinstance(info, (inspect.StrType, inspect.AnyType))


def enum_member(cls: type, value: object) -> Any:
    """``cls(value)``: for Django's Choices, since msgspec knows only enums of the plain metaclass."""
    return cls(value)


def converted(cls: type[Any], fields: Mapping[str, Any]) -> Any:
    """An instance of ``cls`` with ``fields``, validated and converted by msgspec.

    Raises:
        msgspec.ValidationError: a field is missing or of another type.
    """
    return msgspec.convert(fields, cls, dec_hook=enum_member)
