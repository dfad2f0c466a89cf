"""The papers: what to run at which budget, how their figures are drawn, and which of their claims come out."""
