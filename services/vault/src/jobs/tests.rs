//! Every job through crashes, faults and repetition.
