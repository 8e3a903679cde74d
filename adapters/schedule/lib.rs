//! xbus-schedule
