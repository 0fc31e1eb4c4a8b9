"""nearest_code in compiled and exported graphs: one operator, no break, the same answer from the same back end.

In a process of its own, because the tests' import hook cannot be compiled.
"""

import torch
from clean_interpreter import CleanInterpreter

from smalti.ops import native, nearest_code
from smalti.ops import nearest as front

PROGRAM = """
import io
import torch
from smalti import VectorQuantizer
from smalti.ops import native, nearest_code, portable

served = []
for back_end in (native, portable):
    def counted(*args, _name=back_end.__name__, _nearest=back_end.nearest):
        served.append(_name.rpartition(".")[2])
        return _nearest(*args)
    back_end.nearest = counted

def served_by(call):
    served.clear()
    result = call()
    return result, tuple(served)

torch.manual_seed(0)
z, codebook = torch.randn(300, 8), torch.randn(500, 8)
eager, by_eager = served_by(lambda: nearest_code(z, codebook, "cosine"))
compiled = torch.compile(lambda z, e: nearest_code(z, e, "cosine") + 0, fullgraph=True, backend="aot_eager")
graph, by_graph = served_by(lambda: compiled(z, codebook))
assert torch.equal(graph, eager)
assert by_graph == by_eager == (EXPECTED,), (by_graph, by_eager)
assert torch.equal(compiled(z[:7], codebook), eager[:7])  # another N

quantizer = VectorQuantizer(64, 8).eval()
image = torch.randn(2, 8, 5, 7)
whole, by_eager = served_by(lambda: quantizer(image))
compiled = torch.compile(quantizer.forward, fullgraph=True, backend="aot_eager")
graph, by_graph = served_by(lambda: compiled(image))
assert torch.equal(graph.indices, whole.indices)
torch.testing.assert_close(graph.quantized, whole.quantized)
assert by_graph == by_eager == (EXPECTED,), (by_graph, by_eager)

class Search(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.codebook = torch.nn.Parameter(codebook)

    def forward(self, z):
        return nearest_code(z, self.codebook)

expected = nearest_code(z, codebook)
exported = torch.export.export(Search(), (z,), dynamic_shapes={"z": {0: torch.export.Dim.AUTO}})
graphs = [part.graph for part in exported.graph_module.modules()]  # "no gradient" makes a graph in the graph
assert any(node.target is torch.ops.smalti.nearest_code.default for graph in graphs for node in graph.nodes)
file = io.BytesIO()
torch.export.save(exported, file)
file.seek(0)
loaded = torch.export.load(file).module()
found, by_graph = served_by(lambda: loaded(z[:33]))
assert torch.equal(found, expected[:33])
assert by_graph == (EXPECTED,), by_graph

refused = torch.compile(lambda z, e: nearest_code(z, e, check_finite=True), fullgraph=True, backend="aot_eager")
assert torch.equal(refused(z, codebook), expected)
try:
    refused(z * torch.nan, codebook)
except ValueError as error:
    print(error)
"""


def test_a_graph_calls_the_same_back_end_and_answers_alike(clean: CleanInterpreter) -> None:
    back_end = "native" if native.available() else "portable"
    result = clean.run("-c", f"EXPECTED = {back_end!r}\n" + PROGRAM)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "z_ND: got NaN or infinity, expected finite values\n"


def test_the_operator_keeps_torch_rules() -> None:
    """Schema, fake tensors and shapes that vary, by torch's own checks."""
    z, codebook = torch.randn(20, 4), torch.randn(9, 4)
    arguments = (z, codebook, "euclidean", "auto", "exact", False)
    torch.library.opcheck(front._operator, arguments)
    assert torch.equal(front._operator(*arguments), nearest_code(z, codebook))
