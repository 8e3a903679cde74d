//! xbus-queue
