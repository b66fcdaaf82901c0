"""PTX text to a list of instructions with resolved registers, labels and symbols."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np

PARAMETERS = 1 << 49  # where kernel parameters lie in the interpreter's address space
SHARED_START = 1024  # of shared memory within its window

WIDTHS = {"8": 1, "16": 2, "32": 4, "64": 8}


class PtxError(Exception):
    """The program does what it must not, or what the interpreter does not know."""


def size_of(kind: str) -> int:
    """Bytes of a type such as "u32"."""
    return int(kind[1:]) // 8


class Register(NamedTuple):
    index: int
    kind: str  # "pred" or "b16", "b32", "b64"


class Immediate(NamedTuple):
    value: Any  # int, or the bits of a float


class Address(NamedTuple):
    base: Any
    offset: int


class Vector(NamedTuple):
    items: tuple


class Tensor(NamedTuple):
    """[map, {coordinates}] of a TMA instruction."""

    map: Any
    coordinates: Any


class Special(NamedTuple):
    name: str


class Label(NamedTuple):
    name: str


class Instruction(NamedTuple):
    guard: tuple[Register, bool] | None  # the predicate, and whether it is negated
    opcode: str
    parts: tuple[str, ...]
    operands: tuple
    text: str


def split_list(text: str) -> list[str]:
    """Splits at commas outside of brackets."""
    found, depth, current = [], 0, ""
    for char in text:
        depth += (char in "[{(") - (char in "]})")
        if char == "," and depth == 0:
            found.append(current.strip())
            current = ""
        else:
            current += char
    return [*found, current.strip()] if current.strip() else found


def _statements(body: str) -> list[str]:
    """The statements of a body: braces of a scope and labels with their colon are statements of their own."""
    found, current = [], ""
    for char in body:
        if char in "{}" and not current.strip():
            found.append(char)
            current = ""
        elif char == ";":
            found.append(" ".join(current.split()))
            current = ""
        elif char == ":" and re.fullmatch(r"\s*[$\w]+", current):
            found.append(current.strip() + ":")
            current = ""
        else:
            current += char
    return found


class Program:
    """One kernel of a PTX module."""

    def __init__(self, text: str, name: str):
        text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S)
        head = re.search(r"\.entry\s+" + re.escape(name) + r"\s*\(([^)]*)\)([^{]*)\{", text)
        if head is None:
            raise PtxError(f"no kernel {name} in the module")
        self.name = name
        self.parameters: list[tuple[int, int]] = []  # (offset, bytes)
        self.symbols: dict[str, int] = {}
        self.registers: dict[str, Register] = {}
        self.labels: dict[str, int] = {}
        self.instructions: list[Instruction] = []
        self.parameter_bytes = self._read_parameters(head.group(1))
        end, depth = head.end(), 1
        while depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        self.shared_bytes = self._place_shared(text[: head.start()] + text[head.end() : end])
        self._scopes: list[dict[str, str]] = [{}]
        self._count = 0
        self._read(_statements(text[head.end() : end - 1]), 0, outermost=True)

    def _read_parameters(self, text: str) -> int:
        offset = 0
        for item in split_list(text):
            found = re.search(r"(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?$", item)
            if found is None:
                raise PtxError(f"unknown parameter: {item}")
            size = size_of(found.group(2)) * int(found.group(4) or 1)
            align = int(found.group(1) or min(size, 8))
            offset = -(-offset // align) * align
            self.symbols[found.group(3)] = PARAMETERS + offset
            self.parameters.append((offset, size))
            offset += size
        return offset

    def _place_shared(self, text: str) -> int:
        """Static shared variables in order, then the dynamic ones. Returns the bytes of the static part."""
        position, dynamic = SHARED_START, []
        for align, kind, name, count in re.findall(r"\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)\[(\d*)\]", text):
            if not count:
                dynamic.append(name)
                continue
            position = -(-position // int(align or 1)) * int(align or 1)
            self.symbols[name] = position
            position += size_of(kind) * int(count)
        start = -(-position // 1024) * 1024
        self.symbols |= dict.fromkeys(dynamic, start)
        return start - SHARED_START

    def _declare(self, name: str, kind: str) -> None:
        if name not in self.registers:
            self.registers[name] = Register(len(self.registers), kind if kind == "pred" else "b" + kind[1:])

    def _read(self, statements: list[str], start: int, outermost: bool) -> int:
        """Reads one scope; returns the position behind it."""
        if not outermost:
            self._scopes.append(self._local_names(statements, start))
        i = start
        while i < len(statements):
            text = statements[i]
            i += 1
            if text == "{":
                i = self._read(statements, i, outermost=False)
            elif text == "}":
                self._scopes.pop()
                return i
            elif text.endswith(":"):
                self.labels[self._look(text[:-1])] = len(self.instructions)
            elif text.startswith(".reg"):
                if outermost:
                    self._declare_all(text)
            elif text and not text.startswith("."):
                self.instructions.append(self._instruction(text))
        return i

    def _local_names(self, statements: list[str], start: int) -> dict[str, str]:
        """Registers and labels that a scope of inline assembly declares, with names that are unique in the program."""
        names: dict[str, str] = {}
        depth, i, self._count = 0, start, self._count + 1
        while not (statements[i] == "}" and depth == 0):
            text = statements[i]
            depth += (text == "{") - (text == "}")
            if depth == 0 and text.endswith(":"):
                names[text[:-1]] = f"{text[:-1]}@{self._count}"
            elif depth == 0 and text.startswith(".reg"):
                found = re.match(r"\.reg\s*\.(\w+)\s+(.*)", text)
                for name in split_list(found.group(2)):
                    names[name] = f"{name}@{self._count}"
                    self._declare(names[name], found.group(1))
            i += 1
        return names

    def _declare_all(self, text: str) -> None:
        found = re.match(r"\.reg\s*\.(\w+)\s+(.*)", text)
        for name in split_list(found.group(2)):
            many = re.match(r"([%\w]+)<(\d+)>", name)
            for declared in [f"{many.group(1)}{k}" for k in range(int(many.group(2)))] if many else [name]:
                self._declare(declared, found.group(1))

    def _look(self, name: str) -> str:
        return next((scope[name] for scope in reversed(self._scopes) if name in scope), name)

    def _instruction(self, text: str) -> Instruction:
        guard, rest = None, text
        if text[0] == "@":
            predicate, rest = text[1:].split(None, 1)
            guard = (self.registers[self._look(predicate.lstrip("!"))], predicate[0] == "!")
        opcode = re.match(r"[\w.:]+", rest).group(0)
        operands = tuple(self._operand(item) for item in split_list(rest[len(opcode) :]))
        return Instruction(guard, opcode, tuple(opcode.split(".")), operands, text)

    def _operand(self, text: str) -> Any:
        if text[0] == "{":
            return Vector(tuple(self._operand(item) for item in split_list(text[1:-1])))
        if text[0] == "[":
            parts = split_list(text[1:-1])
            if len(parts) > 1:
                return Tensor(*(self._operand(part) for part in parts))
            found = re.fullmatch(r"(.+?)\s*\+\s*(-?\d+)", parts[0])
            base = self._operand(found.group(1) if found else parts[0])
            return Address(base, int(found.group(2)) if found else 0)
        name = self._look(text)
        if name in self.registers:
            return self.registers[name]
        if text[:2] in ("0f", "0F"):
            return Immediate(int(text[2:], 16))
        if text[:2] in ("0d", "0D"):
            return Immediate(int(text[2:], 16))
        if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", text):
            return Immediate(int(text.rstrip("U"), 0))
        if text in self.symbols:
            return Immediate(self.symbols[text])
        if text[0] == "%":
            return Special(text)
        return Label(name)


KINDS = {
    "u8": np.uint8,
    "s8": np.int8,
    "b8": np.uint8,
    "u16": np.uint16,
    "s16": np.int16,
    "b16": np.uint16,
    "u32": np.uint32,
    "s32": np.int32,
    "b32": np.uint32,
    "f32": np.float32,
    "u64": np.uint64,
    "s64": np.int64,
    "b64": np.uint64,
    "f64": np.float64,
    "f16": np.float16,
}
