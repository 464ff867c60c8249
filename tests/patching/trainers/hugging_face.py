"""A small BERT in the Trainer of Hugging Face's transformers: accelerate, its own scheduler, clipping, evaluation."""

import sys
import tempfile

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, PrinterCallback, Trainer, TrainingArguments


class Tokens(Dataset):
    def __init__(self, count):
        generator = torch.Generator().manual_seed(1)
        self.ids = torch.randint(0, 50, (count, 12), generator=generator)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.ids[index, 0] % 2}


def main(p, checkpointing):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=50, **sizes, hidden_dropout_prob=p, attention_probs_dropout_prob=p)
    with tempfile.TemporaryDirectory() as directory:
        settings = {"max_steps": 6, "per_device_train_batch_size": 8, "logging_steps": 1, "learning_rate": 1e-2}
        quiet = {"report_to": [], "disable_tqdm": True, "save_strategy": "no"}
        arguments = TrainingArguments(
            directory, use_cpu=True, gradient_checkpointing=checkpointing, eval_strategy="epoch", **settings, **quiet
        )
        model = BertForSequenceClassification(config)
        trainer = Trainer(model, arguments, train_dataset=Tokens(32), eval_dataset=Tokens(8))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    for entry in trainer.state.log_history:
        for name in ("loss", "eval_loss"):
            if name in entry:
                print(entry[name])


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:] == ["--checkpointing"])
