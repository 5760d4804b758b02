"""datasets: imagefolder with metadata, and what the library itself reads out of it."""

import json

import datasets
import numpy as np
from pictures import folder, inside, save
from PIL import Image

root = folder("datasets", datasets.__version__)
for form, suffix in (("jsonl", "jsonl"), ("csv", "csv")):
    for split, numbers in (("train", (0, 1)), ("validation", (2,))):
        rows = []
        for number in numbers:
            save(root / form / split / f"{number}.png", number)
            mask = root / form / split / "masks" / f"{number}.png"
            mask.parent.mkdir(exist_ok=True)
            Image.fromarray(inside(number).astype(np.uint8) * (1 + number % 2)).save(mask)
            rows.append((f"{number}.png", f"masks/{number}.png", ["cat", "dog"][number % 2 : 1 + number % 2]))
        lines = (
            [json.dumps({"file_name": file, "mask_file_name": mask, "objects_seen": tags}) for file, mask, tags in rows]
            if form == "jsonl"
            else [
                "file_name,mask_file_name,objects_seen",
                *(f"{file},{mask},{';'.join(tags)}" for file, mask, tags in rows),
            ]
        )
        (root / form / split / f"metadata.{suffix}").write_text("\n".join(lines) + "\n")
    read = datasets.load_dataset("imagefolder", data_dir=str(root / form))
    seen = {
        split: [{"tags": row["objects_seen"], "mask": np.asarray(row["mask"]).tolist()} for row in read[split]]
        for split in read
    }
    (root / f"{form}.json").write_text(json.dumps(seen))
