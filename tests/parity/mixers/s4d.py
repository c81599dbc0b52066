SOURCE = None
CASES = []
START = []
