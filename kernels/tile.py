"""Tiles of products, their sums held in registers.

LLVM's own vectors of loops keep sums in memory, which makes more than one row four times as slow. So these
two loops are written as vector operations: rows x columns of sums, and for one input after the other a fused
multiply-add each; or rows x keys, whose sums lie across a vector until its lanes are added up. Vectors of 16
floats whatever the machine has: LLVM cuts them. Knows nothing of blocks and of who calls.
"""

from __future__ import annotations

from typing import Any

from kernels.compiled import IS_COMPILED, intrinsic

if IS_COMPILED:
    from llvmlite import ir
    from numba import types

VECTOR = 16  # floats


def tile(rows: int, vectors: int, itemsize: int) -> Any:
    """A function of addresses, for compiled code: sums[r] += x[r, k] * weight[k] for k below count, in order.

    Its arguments: x, bytes between its rows; weight (of this itemsize: fp32, or bfloat16), bytes between its
    rows; sums in fp32, bytes between their rows; count; what to fetch meanwhile into the cache, which lies as
    the weight does.
    """

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        _Tile(builder, rows, vectors, itemsize, *operands).emit()
        return context.get_dummy_value()

    def typed(
        typing_context: Any, x: Any, dx: Any, w: Any, dw: Any, s: Any, ds: Any, count: Any, far: Any
    ) -> Any:
        return types.void(*[types.int64] * 8), generate

    return intrinsic(typed)


def dots(rows: int, keys: int) -> Any:
    """A function of addresses, for compiled code: out[r, k] = the product of row r and key k, fp32.

    Its arguments: rows, bytes between them; keys, bytes between them; out, bytes between its rows; vectors of
    a row, at least one. Lane by lane, then the upper half of the lanes onto the lower, until one is left.
    """

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        _Dots(builder, rows, keys, *operands).emit()
        return context.get_dummy_value()

    def typed(typing_context: Any, x: Any, dx: Any, w: Any, dw: Any, s: Any, ds: Any, count: Any) -> Any:
        return types.void(*[types.int64] * 7), generate

    return intrinsic(typed)


class _Loop:
    """Sums over a counted loop. x, weight, sums: addresses, each with the bytes between its rows."""

    def __init__(self, builder: Any, *operands: Any) -> None:
        self.x, self.x_step, self.weight, self.weight_step = operands[:4]
        self.sums, self.sums_step, self.count = operands[4:]
        self.builder = builder
        self.word, self.float = ir.IntType(64), ir.FloatType()
        self.lanes = ir.VectorType(self.float, VECTOR)

    def sum_up(self, start: list[Any], step: Any) -> list[Any]:
        """The sums after every turn. step(k): the two factors that turn k adds to each."""
        builder, before = self.builder, self.builder.basic_block
        loop, after = builder.append_basic_block("inputs"), builder.append_basic_block("summed")
        builder.branch(loop)
        builder.position_at_end(loop)
        k, sums = builder.phi(self.word), [builder.phi(self.lanes) for _ in start]
        fma = self._function(f"llvm.fma.v{VECTOR}f32", self.lanes, [self.lanes] * 3)
        added = [builder.call(fma, [*factors, own]) for factors, own in zip(step(k), sums, strict=True)]
        following = builder.add(k, self._int(1))
        builder.cbranch(builder.icmp_signed("<", following, self.count), loop, after)
        for phi, first, then in zip([k, *sums], [self._int(0), *start], [following, *added], strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(then, loop)
        builder.position_at_end(after)
        return added

    def _function(self, name: str, answer: Any, operands: list[Any]) -> Any:
        module = self.builder.module
        return module.globals.get(name) or ir.Function(module, ir.FunctionType(answer, operands), name)

    def _int(self, value: int) -> Any:
        return ir.Constant(self.word, value)

    def _pointer(self, base: Any, step: Any, number: Any, offset: int, kind: Any) -> Any:
        at = self.builder.add(base, self.builder.add(self.builder.mul(step, number), self._int(offset)))
        return self.builder.inttoptr(at, kind.as_pointer())

    def _row(self, base: Any, step: Any, number: int) -> Any:
        return self.builder.add(base, self.builder.mul(step, self._int(number)))


class _Dots(_Loop):
    """The instructions of one tile of rows x keys."""

    def __init__(self, builder: Any, rows: int, keys: int, *operands: Any) -> None:
        super().__init__(builder, *operands)
        self.rows, self.keys = rows, keys

    def emit(self) -> None:
        places = [(r, k) for r in range(self.rows) for k in range(self.keys)]
        nothing = ir.Constant(self.lanes, [0.0] * VECTOR)
        for (r, k), total in zip(places, self.sum_up([nothing for _ in places], self._factors), strict=True):
            at = self._pointer(self.sums, self.sums_step, self._int(r), 4 * k, self.float)
            self.builder.store(self._added(total), at, align=4)

    def _factors(self, v: Any) -> list[tuple[Any, Any]]:
        rows = [self._vector(self._row(self.x, self.x_step, r), v) for r in range(self.rows)]
        keys = [self._vector(self._row(self.weight, self.weight_step, k), v) for k in range(self.keys)]
        return [(row, key) for row in rows for key in keys]

    def _vector(self, row: Any, v: Any) -> Any:
        return self.builder.load(self._pointer(row, self._int(4 * VECTOR), v, 0, self.lanes), align=4)

    def _added(self, total: Any) -> Any:
        """Of its lanes."""
        width, word = VECTOR // 2, ir.IntType(32)
        while width:
            halves = [
                self.builder.shuffle_vector(
                    total,
                    ir.Constant(total.type, ir.Undefined),
                    ir.Constant(ir.VectorType(word, width), list(range(start, start + width))),
                )
                for start in (0, width)
            ]
            total, width = self.builder.fadd(*halves), width // 2
        return self.builder.extract_element(total, ir.Constant(word, 0))


class _Tile(_Loop):
    """The instructions of one tile of rows x columns."""

    def __init__(self, builder: Any, rows: int, vectors: int, itemsize: int, *operands: Any) -> None:
        super().__init__(builder, *operands[:-1])
        self.far = operands[-1]
        self.rows, self.vectors, self.itemsize = rows, vectors, itemsize

    def emit(self) -> None:
        places = [(r, v) for r in range(self.rows) for v in range(self.vectors)]
        start = [self.builder.load(self._sum_at(*place), align=4) for place in places]
        for place, total in zip(places, self.sum_up(start, self._factors), strict=True):
            self.builder.store(total, self._sum_at(*place), align=4)

    def _factors(self, k: Any) -> list[tuple[Any, Any]]:
        weights = [self._weight(k, v) for v in range(self.vectors)]
        values = [self._spread(k, r) for r in range(self.rows)]
        self._fetch(k)
        return [(value, weight) for value in values for weight in weights]

    def _sum_at(self, r: int, v: int) -> Any:
        return self._pointer(self.sums, self.sums_step, self._int(r), 4 * VECTOR * v, self.lanes)

    def _spread(self, k: Any, r: int) -> Any:
        """x[r, k] in every lane."""
        row = self._row(self.x, self.x_step, r)
        value = self.builder.load(self._pointer(row, self._int(4), k, 0, self.float), align=4)
        one = self.builder.insert_element(
            ir.Constant(self.lanes, ir.Undefined), value, ir.Constant(ir.IntType(32), 0)
        )
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), VECTOR), [0] * VECTOR)
        return self.builder.shuffle_vector(one, ir.Constant(self.lanes, ir.Undefined), zeros)

    def _weight(self, k: Any, v: int) -> Any:
        """Sixteen columns; a bfloat16 is the upper half of its float."""
        stored = ir.VectorType(ir.IntType(16), VECTOR) if self.itemsize == 2 else self.lanes
        pointer = self._pointer(self.weight, self.weight_step, k, self.itemsize * VECTOR * v, stored)
        loaded = self.builder.load(pointer, align=self.itemsize)
        if self.itemsize == 4:
            return loaded
        wide = ir.VectorType(ir.IntType(32), VECTOR)
        upper = self.builder.shl(self.builder.zext(loaded, wide), ir.Constant(wide, [16] * VECTOR))
        return self.builder.bitcast(upper, self.lanes)

    def _fetch(self, k: Any) -> None:
        kinds = [ir.IntType(8).as_pointer(), *[ir.IntType(32)] * 3]
        function = self._function("llvm.prefetch.p0", ir.VoidType(), kinds)
        for offset in range(0, self.itemsize * VECTOR * self.vectors, 64):
            pointer = self._pointer(self.far, self.weight_step, k, offset, ir.IntType(8))
            self.builder.call(function, [pointer, *(ir.Constant(ir.IntType(32), n) for n in (0, 3, 1))])
