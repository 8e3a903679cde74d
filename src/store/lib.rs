//! xbus-store
