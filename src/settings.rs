//! Settings: flags, then environment, then `.env`, validated once.
