//! Prefixes of a route, and the XPaths compiled with them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use ahash::AHashMap;

use crate::xpath::{XPath, XPathError};

/// XPaths made while messages run that are kept compiled, for each route.
const KEPT: usize = 512;

/// So many paths are looked for in one reading of a document.
const MOST_ASKED: usize = 16;

/// Prefixes with the XPaths compiled under them: those known at load are found without a lock.
#[derive(Default)]
pub(crate) struct Namespaces {
    pub(crate) prefixes: BTreeMap<String, String>,
    literals: AHashMap<String, Arc<XPath>>,
    others: Mutex<AHashMap<String, Arc<XPath>>>,
    /// Literals that the script asks of its own message and that a stream can answer.
    asked: Vec<Arc<XPath>>,
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

    /// Notes a literal that was compiled and is asked of the message itself.
    pub(crate) fn ask(&mut self, text: &str) {
        if let Some(known) = self.literals.get(text)
            && known.plain.is_some()
            && self.asked.len() < MOST_ASKED
            && !self.asked.iter().any(|asked| Arc::ptr_eq(asked, known))
        {
            self.asked.push(known.clone());
        }
    }

    /// What may be asked beside `xpath`, so that one reading can answer all of it.
    pub(crate) fn asked(&self) -> &[Arc<XPath>] {
        &self.asked
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
