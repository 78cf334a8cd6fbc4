"""A reader and writer of replication logs, made from the published layout alone and from nothing of ours.

    hrl.py read FILE                       tells OFFSET SECOND DATA for each write
    hrl.py write FILE SIZE empty-first|plain   takes the same lines
"""
import struct
import sys

EPOCH = 946684800


def complement(data):
    return ~sum(data) & 0xFFFFFFFF


def without(data, field):
    return complement(data[:field] + data[field + 4:])


def with_sum(data, field):
    return data[:field] + struct.pack("<I", without(data, field)) + data[field + 4:]


def read(path):
    data = open(path, "rb").read()
    header = data[:4096]
    cookie, version = struct.unpack_from("<8sI", header, 0)
    assert (cookie, version) == (b"msctlog ", 0x20000)
    assert struct.unpack_from("<I", header, 40)[0] == without(header, 40)
    end, _, size_of_metadata = struct.unpack_from("<QiI", header, 44)
    assert end and size_of_metadata == 4096
    total = struct.unpack_from("<Q", header, 96)[0]
    blocks, at = [], end - 4096
    while True:
        distance, count, sum_of_head = struct.unpack_from("<QII", data, at)
        assert sum_of_head == without(data[at:at + 32], 12) and count <= 127
        blocks.append((at, count))
        if distance == 0:
            break
        at -= distance
    position = 4096
    for at, count in reversed(blocks):
        for index in range(count):
            entry = data[at + 32 * (index + 1):][:32]
            offset, own, length, time, operation, sum_of_data, location = struct.unpack_from("<QIIIBIB", entry, 0)
            assert own == without(entry, 8) and (operation, location) == (1, 0)
            content = data[position:position + length]
            assert sum_of_data == complement(content)
            position += length
            total -= 1
            print(offset, time + EPOCH, content.hex())
        assert position == at
        position = at + 4096
    assert total == 0 and position == end


def write(path, size, empty_first):
    lines = [line.split() for line in sys.stdin]
    out, blocks = bytearray(4096), []

    def block(entries):
        distance = len(out) - blocks[-1] if blocks else 0
        blocks.append(len(out))
        head = with_sum(struct.pack("<QII16x", distance, len(entries), 0), 12)
        out.extend((head + b"".join(entries)).ljust(4096, b"\0"))

    if empty_first:
        block([])
    entries = []
    for offset, second, content in lines:
        content = bytes.fromhex(content)
        out.extend(content)
        fields = (int(offset), 0, len(content), int(second) - EPOCH, 1, complement(content), 0)
        entries.append(with_sum(struct.pack("<QIIIBIB6x", *fields), 8))
        if len(entries) == 127:
            block(entries)
            entries = []
    if entries:
        block(entries)
    header = struct.pack(
        "<8sII4sIQQIQiI16s16sIQIH16s",
        b"msctlog ", 0x20000, 700000000, b"test", 1, size, size, 0, len(out), 0, 4096,
        bytes(range(16)), bytes(16), 700000000, len(lines), 0, 0, bytes(16),
    )
    out[:4096] = with_sum(header.ljust(4096, b"\0"), 40)
    open(path, "wb").write(out)


if sys.argv[1] == "read":
    read(sys.argv[2])
else:
    write(sys.argv[2], int(sys.argv[3]), sys.argv[4] == "empty-first")
