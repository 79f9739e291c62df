"""Operations on manifests: conversations, labels, mix, split, statistics, Shar."""
