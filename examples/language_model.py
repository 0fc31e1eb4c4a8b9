"""A language model that draws: image tokens in the vocabulary of a GPT-2, trained by the Trainer of transformers.

    pip install '.[accelerate]' transformers
    python examples/language_model.py --data fashion-mnist

The "text" is one word, the class of the picture: its id comes first, then the ids of the image. `--data` takes what
`smalti train` takes; its images need classes. A few minutes on two CPU cores.

会画图的语言模型：把图像词元加入 GPT-2 的词表，用 transformers 的 Trainer 训练。“文本”只有一个词，即图片的类别：
先是类别的 id，然后是图像的 id。
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

import smalti
from smalti.data import TransformConfig, open_images, ordered_batches, picture_grid, save_image

SIDE = 28

parser = argparse.ArgumentParser(description="Train a small language model on the image tokens of a data set.")
parser.add_argument("--data", default="fashion-mnist", help="images with classes (default: fashion-mnist)")
parser.add_argument("--out", type=Path, default=Path("runs/language-model"), help="folder to write")
parser.add_argument("--images", type=int, default=20_000, help="images to train on (default: 20000)")
parser.add_argument("--steps", type=int, default=1500, help="steps of each training (default: 1500)")
options = parser.parse_args()
torch.manual_seed(0)

# 1. A tokenizer: 7 x 7 tokens per image, 128 codes / 分词器：每张图像 7×7 个词元，128 个码字
smalti.train(
    options.data,
    options.out / "tokenizer",
    model="simple",
    model_args={"image_channels": 1, "vocab_size": 128, "hidden_dim": 64},
    input={"size": SIDE, "zoom": 1.0, "crop": "center"},
    optimization={"steps": options.steps, "batch_size": 64},
    force=True,
)
tokenizer = smalti.load(options.out / "tokenizer")

# 2. The ids: 0 to 9 are the words, then come the codes, then begin and end / id：先是词，再是码字，最后是起始与结束
source = open_images(options.data, channels=1)
words = source.class_names or tuple(str(label) for label in range(10))
vocabulary = smalti.ImageVocabulary.of(tokenizer, offset=len(words), sizes=[(SIDE, SIDE)])
print(f"ids: {len(words)} words 个词, {tokenizer.vocab_size} codes 个码字, {vocabulary.special_ids}")


class Sequences(torch.utils.data.Dataset):
    """The class of each image, then its ids. 每张图像的类别，然后是它的 id。"""

    def __init__(self, count: int):
        self.ids: list[Tensor] = []
        indices = range(min(count, len(source)))
        for batch in ordered_batches(source, TransformConfig(size=SIDE), batch_size=256, indices=indices):
            labels = torch.tensor(batch.labels)[:, None]
            self.ids += torch.cat([labels, vocabulary.encode(tokenizer.encode(batch.image))], dim=1)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


class Progress(TrainerCallback):
    """Print the loss. 打印损失。"""

    def on_log(self, args: TrainingArguments, state: object, control: object, logs: dict, **_: object) -> None:
        if "loss" in logs:
            print(f"step 步数 {state.global_step}: loss per token 每个词元的损失 {float(logs['loss']):.3f}", flush=True)


# 3. A language model that knows the words; its new embeddings start from the codebook
#    只认识这些词的语言模型；新增的嵌入由码本初始化
length = 1 + vocabulary.length((SIDE, SIDE))
sizes = {"n_positions": length, "n_embd": 128, "n_layer": 4, "n_head": 4}
model = GPT2LMHeadModel(GPT2Config(vocab_size=len(words), bos_token_id=None, eos_token_id=None, **sizes))
smalti.vocabulary.resize_embeddings(model, tokenizer, vocabulary)

# 4. Training / 训练
arguments = TrainingArguments(
    str(options.out / "trainer"),
    max_steps=options.steps,
    per_device_train_batch_size=64,
    learning_rate=1e-3,
    warmup_steps=min(100, options.steps // 10),
    lr_scheduler_type="cosine",
    logging_steps=min(100, options.steps),
    save_strategy="no",
    report_to="none",
    dataloader_pin_memory=False,
    disable_tqdm=True,
    seed=0,
)
trainer = Trainer(model, arguments, train_dataset=Sequences(options.images), callbacks=[Progress])
trainer.remove_callback(PrinterCallback)
trainer.train()

# 5. Four images of each class; only ids that continue an image are allowed / 每类画四张图；只允许能继续图像的 id
begin = vocabulary.special_ids["begin"]
prompts = torch.tensor([[label, begin] for label in range(len(words)) for _ in range(4)], device=model.device)
written = model.eval().generate(
    prompts,
    max_new_tokens=length - 2,
    do_sample=True,
    prefix_allowed_tokens_fn=lambda _, ids: vocabulary.allowed(ids.tolist()),
    pad_token_id=vocabulary.special_ids["end"],
)
images = tokenizer.decode(vocabulary.decode(written[:, 1:].cpu(), image_dtype=torch.float32))
save_image(options.out / "samples.png", picture_grid(list(images.split(4))), force=True)
print(f"{len(images)} images, four per class 张图，每类四张: {options.out / 'samples.png'}")

# 6. The model and what it needs to read and write images, in one folder / 模型与读写图像所需的一切，存入同一文件夹
model.save_pretrained(options.out / "model")
smalti.SmaltiImageProcessor(tokenizer, vocabulary).save_pretrained(options.out / "model")
print(f"model and image processor 模型与图像处理器: {options.out / 'model'}")
