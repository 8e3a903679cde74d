//! CSV (RFC 4180): a table of texts that rows are made from one at a time, and the writer.

use std::sync::Arc;

use ahash::AHashSet;
use rhai::ImmutableString;
use xbus_core::long;

/// How a CSV text is read or written.
#[derive(Clone, Debug)]
pub(crate) struct CsvOptions {
    pub(crate) separator: u8,
    pub(crate) quote: u8,
    /// The first line holds the names of the columns.
    pub(crate) header: bool,
    /// Columns to write, in order; or the names to give when there is no header line.
    pub(crate) columns: Option<Vec<String>>,
}

impl Default for CsvOptions {
    fn default() -> Self {
        Self {
            separator: b',',
            quote: b'"',
            header: true,
            columns: None,
        }
    }
}

/// A parsed CSV text.
#[derive(Debug)]
pub(crate) struct Table {
    /// Empty: rows are lists.
    pub(crate) columns: Vec<ImmutableString>,
    cells: Vec<ImmutableString>,
    /// Where each row ends within the cells.
    ends: Vec<usize>,
}

impl Table {
    /// Parses `text`. A row that has more or fewer fields than the header is an error.
    pub(crate) fn parse(text: &str, options: &CsvOptions) -> Result<Self, String> {
        long::over(text.len(), long::PARSED, || Self::read(text, options))
    }

    fn read(text: &str, options: &CsvOptions) -> Result<Self, String> {
        let named = options.header || options.columns.is_some();
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(options.separator)
            .quote(options.quote)
            .has_headers(false)
            .flexible(true)
            .from_reader(text.as_bytes());
        let mut table = Table {
            columns: Vec::new(),
            cells: Vec::new(),
            ends: Vec::new(),
        };
        if let (Some(columns), false) = (&options.columns, options.header) {
            table.columns = columns.iter().map(|c| c.as_str().into()).collect();
        }
        let mut record = csv::StringRecord::new();
        let mut names = AHashSet::new();
        let mut first = true;
        let mut last = 0;
        loop {
            match reader.read_record(&mut record) {
                Ok(false) => return Ok(table),
                Ok(true) => {
                    let from = last;
                    last = usize::try_from(reader.position().byte()).unwrap_or(text.len());
                    // A quote that does not close takes in all the rest.
                    if last >= text.len()
                        && let Some(at) = unclosed(text, from, options)
                    {
                        return Err(format!(
                            "not valid CSV: the quote that opens in line {} is never closed",
                            line(text, at)
                        ));
                    }
                }
                Err(error) => return Err(format!("not valid CSV: {error}")),
            }
            if first && options.header {
                first = false;
                for (at, name) in record.iter().enumerate() {
                    let name = ImmutableString::from(name);
                    if !names.insert(name.clone()) {
                        return Err(format!(
                            "the CSV header names '{name}' twice (column {})",
                            at + 1
                        ));
                    }
                    table.columns.push(name);
                }
                continue;
            }
            first = false;
            if named && record.len() != table.columns.len() {
                let begin = record.position().map_or(0, csv::Position::byte);
                return Err(format!(
                    "not valid CSV: line {} has {} fields, the header has {}",
                    line(text, usize::try_from(begin).unwrap_or_default()),
                    record.len(),
                    table.columns.len()
                ));
            }
            table.cells.extend(record.iter().map(ImmutableString::from));
            table.ends.push(table.cells.len());
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn row(&self, at: usize) -> &[ImmutableString] {
        let from = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.cells[from..self.ends[at]]
    }
}

/// The 1-based line of the record that is read from a byte on. The crate begins to read it before the line
/// feed of the line before, and before empty lines.
fn line(text: &str, from: usize) -> usize {
    let text = text.as_bytes();
    let ends = |byte: &u8| matches!(byte, b'\r' | b'\n');
    let skipped = text[from..].iter().take_while(|byte| ends(byte)).count();
    let before = &text[..from + skipped];
    let feeds = before.iter().filter(|byte| **byte == b'\n').count();
    let lone = before
        .iter()
        .enumerate()
        .filter(|(at, byte)| **byte == b'\r' && text.get(at + 1) != Some(&b'\n'));
    feeds + lone.count() + 1
}

/// Where the quoted field begins that does not end before the text does; `from` begins a record.
fn unclosed(text: &str, from: usize, options: &CsvOptions) -> Option<usize> {
    enum State {
        Begin,
        Plain,
        Quoted(usize),
        /// A quote within quotes: the end of the field, or the first of a doubled one.
        Quote(usize),
    }
    let mut state = State::Begin;
    for (at, byte) in text.bytes().enumerate().skip(from) {
        let ends = byte == options.separator || matches!(byte, b'\r' | b'\n');
        state = match state {
            State::Quoted(begin) if byte == options.quote => State::Quote(begin),
            State::Quoted(begin) => State::Quoted(begin),
            State::Quote(begin) if byte == options.quote => State::Quoted(begin),
            State::Begin if byte == options.quote => State::Quoted(at),
            _ if ends => State::Begin,
            _ => State::Plain,
        };
    }
    match state {
        State::Quoted(begin) => Some(begin),
        _ => None,
    }
}

/// Writes rows of fields, each line ending in CRLF.
pub(crate) struct CsvWriter {
    inner: csv::Writer<Vec<u8>>,
    written: usize,
    limit: usize,
}

impl CsvWriter {
    pub(crate) fn new(options: &CsvOptions, limit: usize) -> Self {
        Self {
            inner: csv::WriterBuilder::new()
                .delimiter(options.separator)
                .quote(options.quote)
                .terminator(csv::Terminator::CRLF)
                .flexible(true)
                .from_writer(Vec::new()),
            written: 0,
            limit,
        }
    }

    pub(crate) fn row<'a>(&mut self, fields: impl Iterator<Item = &'a str>) -> Result<(), String> {
        for field in fields {
            self.written += field.len() + 1;
            self.inner
                .write_field(field)
                .map_err(|error| error.to_string())?;
        }
        if self.written > self.limit {
            return Err(format!("the CSV would be larger than {} bytes", self.limit));
        }
        self.inner
            .write_record(None::<&[u8]>)
            .map_err(|error| error.to_string())
    }

    pub(crate) fn finish(self) -> Result<String, String> {
        let bytes = self.inner.into_inner().map_err(|error| error.to_string())?;
        String::from_utf8(bytes).map_err(|error| error.to_string())
    }
}

/// A lookup table: rows by the text of their first column; of a key given twice the first counts.
#[derive(Debug)]
pub(crate) struct Lookup {
    pub(crate) table: Arc<Table>,
    index: ahash::AHashMap<ImmutableString, usize>,
}

impl Lookup {
    pub(crate) fn new(table: Table) -> Self {
        let mut index = ahash::AHashMap::with_capacity(table.len());
        for at in 0..table.len() {
            if let Some(key) = table.row(at).first() {
                index.entry(key.clone()).or_insert(at);
            }
        }
        Self {
            table: Arc::new(table),
            index,
        }
    }

    pub(crate) fn find(&self, key: &str) -> Option<usize> {
        self.index.get(key).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_separators_and_line_ends() {
        let table = Table::parse(
            "a;b\r\n\"x;\"\"1\"\"\";\"two\nlines\"\r\n",
            &CsvOptions {
                separator: b';',
                ..CsvOptions::default()
            },
        )
        .unwrap();
        assert_eq!(table.columns, ["a", "b"]);
        assert_eq!(table.row(0), ["x;\"1\"", "two\nlines"]);
        let mut writer = CsvWriter::new(&CsvOptions::default(), 1000);
        writer.row(["a", "b, c"].into_iter()).unwrap();
        writer.row(["", "\"q\""].into_iter()).unwrap();
        assert_eq!(writer.finish().unwrap(), "a,\"b, c\"\r\n,\"\"\"q\"\"\"\r\n");
    }

    #[test]
    fn a_quote_that_never_closes_is_refused() {
        let parse = |text: &str| Table::parse(text, &CsvOptions::default());
        for (text, line) in [
            ("a,b\n1,\"x", 2),
            ("a,b\r\n1,2\r\n3,\"x\r\n4,5\r\n", 3),
            ("a,\"b", 1),
            ("a,b\n1,\"x\"\"", 2),
            ("a,b\n\"x\ny\",\"z", 3),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(&format!("line {line} is never")), "{error}");
        }
        for text in [
            "a,b\n1,\"x\"",
            "a,b\n1,\"x\"\"\"",
            "a,b\n1,x\"",
            "a,b\n1,\"x\"\n\n",
            "a,b\n1,\"\"",
        ] {
            assert_eq!(parse(text).unwrap().len(), 1, "{text}");
        }
    }

    #[test]
    fn ragged_rows_and_doubled_columns_are_refused() {
        let options = CsvOptions::default();
        for text in [
            "a,b\n1,2\n3\n",
            "a,b\r\n1,2\r\n3\r\n",
            "a,b\r1,2\r3\r",
            "a,b\n\n3\n",
            "a,b\r\n\r\n3\r\n",
            "a,\"\nb\"\n3\n4,5",
        ] {
            let error = Table::parse(text, &options).unwrap_err();
            assert!(error.contains("line 3 has 1 fields"), "{text}: {error}");
        }
        assert!(Table::parse("a,a\n", &options).is_err());
    }
}
