"""Rank passages for a question: python examples/first_search.py MODEL "when is payday?" """

import sys
from pathlib import Path

from nvembed import Encoder

model_name, question = sys.argv[1:] if len(sys.argv) == 3 else ("models/nvembed-small", "when is payday?")
passages = (Path(__file__).parent / "handbook" / "office.txt").read_text(encoding="utf-8").splitlines()
passages.append("Salaries arrive on the 25th, or on the last working day before it.")

model = Encoder.from_pretrained(model_name)
vectors = model.encode_document(passages)
query = model.encode_query(
    [question], instruction="Given a question, retrieve passages that answer the question"
)
scores = model.similarity(query, vectors)[0]
for row in scores.argsort()[::-1][:3]:
    print(f"{scores[row]:.3f}  {passages[row]}")
