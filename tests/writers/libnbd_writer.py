#!/usr/bin/python3
"""A writer that shares no code with Continuum: libnbd writes stamped blocks and logs what was acknowledged.

libnbd_writer.py URI LOG RUN DISK FIRST_BLOCK END_BLOCK BYTES_PER_SEC FIRST_SEQUENCE

Ends on SIGTERM. Connects again for ever. The format of blocks and log stands in tests/src/oracle/stamp.rs and
history.rs; up to eight writes are in flight, never two on the same blocks.
"""
import random
import signal
import struct
import sys
import time
import zlib

import nbd

URI, LOG = sys.argv[1:3]
RUN, DISK, FIRST, END, RATE, SEQUENCE = map(int, sys.argv[3:9])
MAGIC = 0x6F7261636C653032
MASK = (1 << 64) - 1
IN_FLIGHT = 8


def stamp(block, sequence):
    head = struct.pack("<QQIIQQ", MAGIC, RUN, DISK, 0, block, sequence)
    filler = (sequence * 0x9E3779B97F4A7C15 & MASK) | 1
    words = []
    for _ in range(58):
        filler ^= filler << 13 & MASK
        filler ^= filler >> 7
        filler ^= filler << 17 & MASK
        words.append(filler)
    body = head + struct.pack("<58QI", *words, 0)
    return body + struct.pack("<I", zlib.crc32(body))


over = False


def stop(*_):
    global over
    over = True


signal.signal(signal.SIGTERM, stop)
log = open(LOG, "w", buffering=1)
log.write(f"run {RUN}\n")
rng = random.Random(RUN ^ SEQUENCE)
now = lambda: time.time_ns() // 1000
begun, sent, handle = time.monotonic(), 0, None
span = (END - FIRST) // IN_FLIGHT
while not over:
    if handle is None:
        handle = nbd.NBD()
        try:
            handle.connect_uri(URI)
        except nbd.Error:
            handle = None
            time.sleep(0.02)
            continue
    # One write for each of eight stretches, all in flight at once.
    flight = {}
    try:
        for lane in range(IN_FLIGHT):
            count = rng.randint(1, 8)
            block = FIRST + lane * span + rng.randrange(span - count)
            sequence, SEQUENCE = SEQUENCE, SEQUENCE + 1
            zero = rng.randrange(50) == 0
            data = b"" if zero else b"".join(stamp(b, sequence) for b in range(block, block + count))
            log.write(f"i {sequence} {DISK} {block} {count} {'z' if zero else 'w'} {now()}\n")
            done = lambda error, sequence=sequence: (
                log.write(f"c {sequence} {'ok' if error.value == 0 else 'failed'} {now()}\n"), 1)[1]
            if zero:
                cookie = handle.aio_zero(count * 512, block * 512, done)
            else:
                cookie = handle.aio_pwrite(data, block * 512, done)
            flight[cookie] = sequence
            sent += count * 512
        while handle.aio_in_flight() > 0:
            if handle.poll(20000) == 0:
                raise nbd.Error("no answer within 20 s", 0)
        if rng.randrange(20) == 0:
            handle.flush()
    except (nbd.Error, OSError):
        handle = None
        continue
    due = sent / RATE - (time.monotonic() - begun)
    if due > 0:
        time.sleep(due)
log.close()
