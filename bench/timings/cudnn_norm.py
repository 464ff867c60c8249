"""cuDNN's batch norm of channels-last tensors, also in bf16, by its own graphs: PyTorch calls it for fp16 at most."""

from __future__ import annotations

import functools

import cudnn
import torch
from torch import Tensor, nn

TYPES = {torch.bfloat16: cudnn.data_type.BFLOAT16, torch.float16: cudnn.data_type.HALF}


@functools.cache
def _handle():
    return cudnn.create_handle()


class _Graph:
    """A graph that is built, with its tensors by name, and memory to work in."""

    def __init__(self, dtype: torch.dtype, build):
        self.graph = cudnn.pygraph(
            io_data_type=TYPES[dtype],
            intermediate_data_type=cudnn.data_type.FLOAT,
            compute_data_type=cudnn.data_type.FLOAT,
            handle=_handle(),
        )
        self.tensors = build(self.graph)
        self.graph.validate()
        self.graph.build_operation_graph()
        self.graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        self.graph.check_support()
        self.graph.build_plans()
        self.workspace = torch.empty(self.graph.get_workspace_size(), device="cuda", dtype=torch.uint8)

    def __call__(self, **values: Tensor) -> None:
        cudnn.set_stream(handle=_handle(), stream=torch.cuda.current_stream().cuda_stream)
        pack = {self.tensors[name]: value for name, value in values.items()}
        self.graph.execute(pack, self.workspace, handle=_handle())


def _outputs(tensors: dict, dtype: torch.dtype, whole: str) -> dict:
    """Marked as results: `whole` in the input's dtype, the others in float32."""
    for name, tensor in tensors.items():
        tensor.set_output(True).set_data_type(TYPES[dtype] if name == whole else cudnn.data_type.FLOAT)
    return tensors


class CudnnBatchNorm(nn.Module):
    """Batch norm in training of [N, C, H, W] whose channels are innermost; the graphs are those of the first input."""

    def __init__(self, features: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        shape = 1, features, 1, 1
        self.weight, self.bias = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("variance", torch.ones(shape))
        self.eps, self.momentum = (torch.full((1, 1, 1, 1), value) for value in (eps, momentum))  # on the host
        self._graphs: tuple[_Graph, _Graph] | None = None

    def graphs(self, x: Tensor) -> tuple[_Graph, _Graph]:
        if self._graphs is None:
            self._graphs = self._forward_graph(x), self._backward_graph(x)
        return self._graphs

    def _forward_graph(self, x: Tensor) -> _Graph:
        inputs = {"x": x, "weight": self.weight, "bias": self.bias, "mean": self.mean, "variance": self.variance}
        inputs |= {"eps": self.eps, "momentum": self.momentum}

        def build(graph):
            given = {name: graph.tensor_like(value.detach()) for name, value in inputs.items()}
            results = graph.batchnorm(
                name="forward", input=given["x"], scale=given["weight"], bias=given["bias"],
                in_running_mean=given["mean"], in_running_var=given["variance"],
                epsilon=given["eps"], momentum=given["momentum"],
            )  # fmt: skip
            names = ("y", "saved_mean", "saved_invstd", "new_mean", "new_variance")
            return given | _outputs(dict(zip(names, results, strict=True)), x.dtype, "y")

        return _Graph(x.dtype, build)

    def _backward_graph(self, x: Tensor) -> _Graph:
        inputs = {"dy": x, "x": x, "weight": self.weight, "saved_mean": self.mean, "saved_invstd": self.variance}

        def build(graph):
            given = {name: graph.tensor_like(value.detach()) for name, value in inputs.items()}
            results = graph.batchnorm_backward(
                name="backward", grad=given["dy"], input=given["x"], scale=given["weight"],
                mean=given["saved_mean"], inv_variance=given["saved_invstd"],
            )  # fmt: skip
            return given | _outputs(dict(zip(("dx", "dweight", "dbias"), results, strict=True)), x.dtype, "dx")

        return _Graph(x.dtype, build)

    def forward(self, input: Tensor) -> Tensor:
        return _Apply.apply(input, self.weight, self.bias, self)


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, layer: CudnnBatchNorm) -> Tensor:
        y, mean, invstd = torch.empty_like(x), torch.empty_like(layer.mean), torch.empty_like(layer.mean)
        layer.graphs(x)[0](
            x=x, weight=weight, bias=bias, mean=layer.mean, variance=layer.variance, eps=layer.eps,
            momentum=layer.momentum, y=y, saved_mean=mean, saved_invstd=invstd, new_mean=layer.mean,
            new_variance=layer.variance,
        )  # fmt: skip
        ctx.save_for_backward(x, weight, mean, invstd)
        ctx.layer = layer
        return y

    @staticmethod
    def backward(ctx, dy: Tensor):
        x, weight, mean, invstd = ctx.saved_tensors
        dx, dweight, dbias = torch.empty_like(x), torch.empty_like(mean), torch.empty_like(mean)
        ctx.layer.graphs(x)[1](
            dy=dy, x=x, weight=weight, saved_mean=mean, saved_invstd=invstd, dx=dx, dweight=dweight, dbias=dbias
        )
        return dx, dweight, dbias, None
