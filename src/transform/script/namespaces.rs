//! Prefixes of a route, and the XPaths compiled with them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use ahash::AHashMap;

use crate::xpath::{XPath, XPathError};

/// XPaths made while messages run that are kept compiled, for each route.
const KEPT: usize = 512;

/// Prefixes with the XPaths compiled under them: those known at load are found without a lock.
#[derive(Default)]
pub(crate) struct Namespaces {
    pub(crate) prefixes: BTreeMap<String, String>,
    literals: AHashMap<String, Arc<XPath>>,
    others: Mutex<AHashMap<String, Arc<XPath>>>,
}

impl Namespaces {
    pub(crate) fn new(prefixes: BTreeMap<String, String>) -> Self {
        Self {
            prefixes,
            ..Self::default()
        }
    }

    /// Compiles a literal at load.
    pub(crate) fn add(&mut self, text: &str) -> Result<(), XPathError> {
        if !self.literals.contains_key(text) {
            let compiled = XPath::compile(text, &self.prefixes)?;
            self.literals.insert(text.to_owned(), Arc::new(compiled));
        }
        Ok(())
    }

    /// The compiled form of `text`.
    pub(crate) fn xpath(&self, text: &str) -> Result<Arc<XPath>, XPathError> {
        if let Some(known) = self.literals.get(text) {
            return Ok(known.clone());
        }
        if let Some(known) = self.lock().get(text) {
            return Ok(known.clone());
        }
        let compiled = Arc::new(XPath::compile(text, &self.prefixes)?);
        let mut others = self.lock();
        if others.len() >= KEPT {
            // Expressions that are put together from data never end: start over.
            others.clear();
        }
        others.insert(text.to_owned(), compiled.clone());
        Ok(compiled)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, AHashMap<String, Arc<XPath>>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
