"""DeepTumorVQA (arXiv 2505.18915): CT volumes and masks become measurements, questions, scored answers. No torch."""
