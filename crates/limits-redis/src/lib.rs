//! postrider-limits-redis (being built).
