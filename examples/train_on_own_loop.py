"""A tokenizer in a training loop of your own, on the photographs that scikit-image and scikit-learn carry.

    pip install '.[demo]'
    python examples/train_on_own_loop.py --steps 200

在自己的训练循环中使用图像分词器（tokenizer）。`smalti train` does the same with a schedule, averaging, logs and resume.
"""

import argparse

import torch
import torch.nn.functional as F

from smalti import SimpleVQVAE
from smalti.data import TransformConfig, open_images, ordered_batches, training_batches
from smalti.metrics import psnr

parser = argparse.ArgumentParser(description="Train a small tokenizer in a hand-written loop.")
parser.add_argument("--steps", type=int, default=200, help="optimizer steps (default: 200)")
steps = parser.parse_args().steps

torch.manual_seed(0)
model = SimpleVQVAE(vocab_size=256, embedding_dim=32, hidden_dim=64)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
transform = TransformConfig(size=64, crop="random", zoom=2.0, flip=True)
batches = training_batches(open_images("embedded"), transform, batch_size=8, seed=0)

for step in range(1, steps + 1):
    image = next(batches).image  # (B, 3, 64, 64) in [-1, 1]
    reconstruction, vq_loss, indices = model(image)
    loss = F.mse_loss(reconstruction, image) + vq_loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0 or step == steps:
        used = indices.unique().numel()
        print(f"step 步数 {step}: loss 损失 {loss.item():.4f}, codes used by the batch 本批用到的码字 {used}")

held_out = next(ordered_batches(open_images("embedded:test"), TransformConfig(size=64), batch_size=2)).image
model.eval()
decibels = psnr(model.decode(model.encode(held_out)), held_out).mean().item()
print(f"PSNR of two photographs never seen 两张未见过的照片的 PSNR: {decibels:.2f} dB")
