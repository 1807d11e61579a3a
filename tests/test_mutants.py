"The list of mutants fits the code: `make mutants` can put each of them in."
from mutants import read_mutants


def test_every_mutant_stands_once_in_the_code_and_has_its_tests():
    mutants = read_mutants()
    faults = [fault for mutant in mutants for fault in mutant.faults()]
    assert not faults, "change tests/mutants.toml with the code:\n" + "\n".join(faults)
    assert len({mutant.id for mutant in mutants}) == len(mutants) > 100
