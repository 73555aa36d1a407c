"""A service that is no part of the distribution: ready at once, ends with its standard input or in order at SIGTERM."""

import json
import os
import sys

print(json.dumps({"ready": True, "arguments": sys.argv[1:], "pid": os.getpid()}), flush=True)
sys.stdin.read()
