"""Prompts: what a person, a file or a simulation specifies about objects before a model segments them.

- `PromptType` (`prompt_types`): a kind of prompt (point, box, mask, scribble), with its flags, JSON key and readers.
  Only the table `PROMPT_TYPES` lists them.
- `PromptFlags` (`flags`): the texts after the flags of `predict`, or in a row of a case table, not parsed yet.
- `PredictionCase` (`case_table`): a volume to segment, with its `PromptFlags`.
- `VoxelPrompt` (`voxel_prompts`): the prompts of one object on one canonical slice, in voxels of the volume. All
  sources of prompts produce these.
- `VolumePrompts` (`voxel_prompts`): the `VoxelPrompt` list of a volume, with the names of objects.
- `ObjectPrompts` (`protocols`): by object of a reference, the `VoxelPrompt` list that a protocol simulates.
- `Prompt` (`prompt`): the prompts of one object on one slice, in pixels of the resized slice that a model takes.
  The Python API uses this type; `inference` converts each `VoxelPrompt` to one.
"""
