"""Sums, products, powers and determinants of matrices, worked out to expressions."""

from functools import reduce

from rft_ray.latex_tree import Expression, Matrix, Number, Power, Product, Sum, negated
from rft_ray.math_limits import Undecided, Undefined
from rft_ray.math_values import children

MAX_CELLS = 400
MAX_POWER = 10
MAX_DETERMINANT = 5


def as_matrix(node: Expression) -> Matrix | None:
    """The matrix an expression of matrices comes to; None where it is none, or not defined."""
    match node:
        case Matrix():
            return node
        case Sum(terms):
            found = [as_matrix(term) for term in terms]
            return None if None in found else reduce(_sum, found)  # type: ignore[arg-type]
        case Product(factors):
            return _product_of(factors)
        case Power(Matrix() as base, Number(value)) if value in range(1, MAX_POWER + 1):
            return _product_of((base,) * int(value))
    return None


def holds_matrix(node: Expression) -> bool:
    """Whether a matrix is part of an expression."""
    return isinstance(node, Matrix) or any(map(holds_matrix, children(node)))


def determinant(node: Expression) -> Expression:
    """The determinant by its first row. Raises Undecided, and Undefined where there is none."""
    matrix = as_matrix(node)
    if matrix is None or len(matrix.rows) > MAX_DETERMINANT:
        raise Undecided("a large determinant, or of no matrix")
    if len(matrix.rows) != len(matrix.rows[0]):
        raise Undefined("a determinant of a matrix that is not square")
    return _expanded(matrix.rows)


def _expanded(rows: tuple[tuple[Expression, ...], ...]) -> Expression:
    first, *below = rows
    if not below:
        return first[0]
    terms = []
    for column, cell in enumerate(first):
        minor = tuple(row[:column] + row[column + 1 :] for row in below)
        term = Product((cell, _expanded(minor)))
        terms.append(negated(term) if column % 2 else term)
    return Sum(tuple(terms))


def _product_of(factors: tuple[Expression, ...]) -> Matrix | None:
    parts = [(factor, as_matrix(factor)) for factor in factors]
    matrices = [matrix for _, matrix in parts if matrix is not None]
    scalars = tuple(factor for factor, matrix in parts if matrix is None)
    if not matrices:
        return None
    product = reduce(_product, matrices)  # type: ignore[arg-type]
    if product is None or not scalars:
        return product
    return Matrix(tuple(tuple(Product((*scalars, x)) for x in row) for row in product.rows))


def _sum(left: Matrix | None, right: Matrix | None) -> Matrix | None:
    if left is None or right is None or _shape(left) != _shape(right):
        return None
    rows = zip(left.rows, right.rows, strict=True)
    return Matrix(tuple(tuple(map(_plus, a, b)) for a, b in rows))


def _plus(left: Expression, right: Expression) -> Expression:
    return Sum((left, right))


def _product(left: Matrix | None, right: Matrix | None) -> Matrix | None:
    if left is None or right is None or _shape(left)[1] != _shape(right)[0]:
        return None
    columns = list(zip(*right.rows, strict=True))
    if len(left.rows) * len(columns) * len(right.rows) > MAX_CELLS:
        return None
    return Matrix(tuple(tuple(_dot(row, column) for column in columns) for row in left.rows))


def _dot(row: tuple[Expression, ...], column: tuple[Expression, ...]) -> Expression:
    products = [Product(pair) for pair in zip(row, column, strict=True)]
    return products[0] if len(products) == 1 else Sum(tuple(products))


def _shape(matrix: Matrix) -> tuple[int, int]:
    return len(matrix.rows), len(matrix.rows[0])
