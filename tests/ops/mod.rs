//! Every backend op against its reference.
