"""Whether a whole number is prime, for roots whose independence rests on it."""

# Miller-Rabin with these bases is exact below the limit (Sorenson and Webster, 2015).
BASES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)
LIMIT = 3_317_044_064_679_887_385_961_981


def is_prime(number: int) -> bool:
    """True only for primes; a number beyond the limit counts as not known to be one."""
    if number < 2 or number >= LIMIT:
        return False
    if number in BASES:
        return True
    if any(number % base == 0 for base in BASES):
        return False
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    return all(_passes(number, base, odd, twos) for base in BASES)


def _passes(number: int, base: int, odd: int, twos: int) -> bool:
    value = pow(base, odd, number)
    if value in (1, number - 1):
        return True
    for _ in range(twos - 1):
        value = value * value % number
        if value == number - 1:
            return True
    return False
