"""How and where a GPT is trained: the rooms of the house, see CONTRIBUTING.md."""
