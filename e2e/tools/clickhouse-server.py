#!/usr/bin/env python3
"""Runs a genuine ClickHouse server out of the npm package @chdb/lib-linux-x64-gnu.

usage: clickhouse-server.py LIBCHDB_SO DATA_DIR HTTP_PORT CONFIG_XML

The library exports `query_stable_v2(argc, argv)`, the main function of clickhouse-local. SYSTEM START LISTEN opens the
real HTTP interface, and an endless query keeps the process running. The data survives SIGTERM and SIGKILL.
"""

import ctypes
import sys


class Result(ctypes.Structure):
    _fields_ = [
        ("buffer", ctypes.c_char_p),
        ("length", ctypes.c_size_t),
        ("vector", ctypes.c_void_p),
        ("elapsed", ctypes.c_double),
        ("rows", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("error", ctypes.c_char_p),
    ]


def main() -> None:
    library, data, port, config = sys.argv[1:]
    serve = (
        "SYSTEM START LISTEN HTTP; SELECT sleepEachRow(3) FROM numbers(1000000000) "
        "SETTINGS max_block_size = 1, function_sleep_max_microseconds_per_block = 0 FORMAT Null"
    )
    arguments = [
        "clickhouse",
        f"--config-file={config}",
        f"--path={data}",
        f"--http_port={port}",
        "--multiquery",
        "--query",
        serve,
    ]
    query = ctypes.CDLL(library).query_stable_v2
    query.restype = ctypes.POINTER(Result)
    result = query(len(arguments), (ctypes.c_char_p * len(arguments))(*[a.encode() for a in arguments]))
    # The endless query returns only after an error.
    error = result.contents.error if result else None
    sys.exit(f"clickhouse stopped serving: {error.decode(errors='replace') if error else 'no message'}")


main()
