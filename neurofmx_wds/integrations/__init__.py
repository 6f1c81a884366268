"""Training frameworks: thin parts, each of which calls the loaders.

A loader of batches is a torch ``DataLoader``, so that frameworks take it as it is. Each resumes at the next batch.

**Lightning** (extra ``lightning``), also if a schedule asks for ``trainer.estimated_stepping_batches``::

    data = neurofmx_wds.lightning.NeuroDataModule(train="sets/train", val="sets/val", batch_size=16)
    trainer.fit(model, datamodule=data, ckpt_path="last.ckpt")
    trainer.fit(model, create_webdataset_dataloader("sets/train"), ckpt_path="last.ckpt")  # a loader as it is

Each Lightning epoch is the loader's epoch of that number, also with ``limit_train_batches``. Several loaders in a
``CombinedLoader`` resume likewise.

**Fabric**. Another number of ranks, or another batch size, is fine when it resumes::

    loader = fabric.setup_dataloaders(create_webdataset_dataloader("shards", batch_size=16))
    fabric.save("checkpoint", {"model": model, "loader": loader})
    fabric.load("checkpoint", {"model": model, "loader": loader})

**Accelerate** (extra ``accelerate``). It counts batches: resume with the same number of processes and batch size::

    loader = create_webdataset_dataloader("shards", batch_size=16)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    loader.set_epoch(epoch)  # after a restart
    loader = accelerator.skip_first_batches(loader, done)  # reads nothing of what it skips

For another number of processes, keep the loader out of ``prepare`` and save ``loader.state_dict()``. A plain
``DataLoader(WebDatasetLoader(…))`` may be prepared too, but then each process reads all samples: prefer batches.

**Hugging Face** (extra ``hf``). ``Trainer`` counts steps: resume with the same number of processes and batch size::

    class Trainer(transformers.Trainer):
        def get_train_dataloader(self):
            return create_webdataset_dataloader("shards", batch_size=16).map(to_model_inputs)


    Trainer(model, TrainingArguments(..., remove_unused_columns=False)).train(resume_from_checkpoint=True)

**webdataset's WebLoader**: see :mod:`neurofmx_wds.integrations.webloader`.
"""
