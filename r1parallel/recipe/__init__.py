"""An R1 recipe in one YAML: data, SFT cold start, GRPO, evaluation, each by the command that users run themselves."""
