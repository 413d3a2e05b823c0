"""Answers: what will a run need and cost, and how often should it be saved? Formulas only, without torch."""
