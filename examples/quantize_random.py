"""A vector quantizer on random numbers: shapes, loss, gradient, and a few steps of learning.

    python examples/quantize_random.py

用随机数演示向量量化：形状、损失、梯度，以及几步学习。
"""

import torch

from smalti import VectorQuantizer

torch.manual_seed(0)
vq = VectorQuantizer(num_embeddings=16, embedding_dim=64, beta=0.25)
z = torch.randn(1, 64, 8, 8, requires_grad=True)

output = vq(z)
quantized, loss, indices = output
print("latent 潜变量:", tuple(z.shape))
print("quantized 量化结果:", tuple(quantized.shape))
print("indices 码字索引:", tuple(indices.shape))
print("codes used 用到的码字:", indices.unique().numel(), "/", vq.num_embeddings)
print(f"codebook term 码本损失: {output.terms['codebook'].item():.4f} x {output.weights['codebook']}")
print(f"commitment term 承诺损失: {output.terms['commitment'].item():.4f} x {output.weights['commitment']}")
print(f"loss 总损失: {loss.item():.4f}")

# Straight-through: the gradient of a sum is 1 everywhere, as if nothing had been rounded
# 直通估计：求和的梯度处处为  1，如同没有经过量化
quantized.sum().backward()
print("gradient passes straight through 梯度直通:", bool((z.grad == 1).all()))

# Random vectors have no structure, yet the codes move towards them / 随机向量没有结构，但码字仍会向它们靠近
optimizer = torch.optim.Adam(vq.parameters(), lr=0.05)
for _ in range(50):
    optimizer.zero_grad()
    vq(z.detach()).loss.backward()
    optimizer.step()
print(f"loss after 50 steps 训练 50 步后的损失: {vq(z).loss.item():.4f}")
