"""What the soak of replacements allows a reader to find, and what not: a memory that allows all would find nothing."""

from __future__ import annotations

from heal_memory import Memory, Tokens, block_of

SIZE = 512


def holding(*tokens: int) -> bytes:
    return b"".join(block_of(token, block, SIZE) for block, token in enumerate(tokens))


def complaints(memory: Memory, data: bytes, first: int = 0) -> list[str]:
    return list(memory.read(first, data))


def written(memory: Memory, first: int, blocks: int, token: int) -> bytes:
    data = memory.write(first, blocks, token)
    memory.answered()
    return data


def test_disk_in_service_holds_its_last_write_and_nothing_else() -> None:
    memory, tokens = Memory.blank(4 * SIZE, SIZE), Tokens()
    first, second = tokens.next(), tokens.next()
    written(memory, 0, 2, first)
    assert complaints(memory, written(memory, 1, 1, second), 1) == []
    assert complaints(memory, holding(first, second, 0, 0)) == []
    assert complaints(memory, holding(first, first, 0, 0)) == ["block 1 holds write 1, not [2]"]
    assert len(complaints(memory, bytes(SIZE))) == 1
    misplaced = block_of(first, 1, SIZE)
    assert complaints(memory, misplaced)[0].startswith("block 0 holds what nobody wrote there")
    torn = holding(first)[:256] + bytes(256)
    assert len(complaints(memory, torn)) == 1


def test_unflushed_write_may_be_lost_with_its_machine_and_flushed_one_may_not() -> None:
    memory = Memory.blank(2 * SIZE, SIZE)
    written(memory, 0, 1, 1)
    memory.flushed()
    written(memory, 0, 2, 2)
    memory.lost()
    assert complaints(memory, holding(0)) != []
    assert complaints(memory, holding(1)) == []
    assert complaints(memory, holding(2)) == ["block 0 holds write 2, not [1]"]  # whoever has read it knows it
    assert complaints(memory, block_of(2, 1, SIZE), 1) == []


def test_snapshot_in_the_middle_of_writes_is_of_some_moment_between_question_and_answer() -> None:
    memory = Memory.blank(3 * SIZE, SIZE)
    written(memory, 0, 3, 1)
    memory.write(1, 1, 2)  # is on its way when somebody asks
    window = memory.window()
    memory.answered()
    written(memory, 2, 1, 3)
    memory.close(window)
    written(memory, 0, 3, 4)
    frozen = window.frozen()
    assert [sorted(cell.tokens) for cell in frozen.cells] == [[1], [0, 1, 2], [1, 3]]
    one, other = Memory.of(frozen), Memory.of(frozen)
    assert complaints(one, holding(1, 2, 3)) == []
    assert complaints(other, holding(1, 2, 1)) == ["block 2 holds write 1, not [3]"]  # both are of one snapshot
    written(one, 2, 1, 5)
    one.flushed()
    assert complaints(other, holding(1, 2, 3)) == [] == complaints(one, holding(1, 2, 5))


def test_snapshot_may_be_of_what_is_left_when_the_machine_dies_meanwhile() -> None:
    memory = Memory.blank(SIZE, SIZE)
    written(memory, 0, 1, 1)
    window = memory.window()
    assert [sorted(cell.tokens) for cell in window.cells] == [[1]]
    memory.lost()
    memory.close(window)
    assert [sorted(cell.tokens) for cell in window.cells] == [[0, 1]]
