//! Candidate tries, ranking, metrics, significance, general knowledge.
