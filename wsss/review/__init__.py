"""Local pages for people: `wsss review` to check tags and masks, `wsss try` to see what a trained segmenter predicts.

`guard` decides which requests are answered, `serving` runs the server, `reviewing` and `trying` are the two applications. A review reads
its `material` (pictures, maps, masks), `measures` what looks wrong, and writes `decisions`. The pages are plain files in `page`.
"""
