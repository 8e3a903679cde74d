//! What scripts do with lists of the bus, and CSV, which is made of them.

use rhai::{Array, Dynamic, FnPtr, INT, ImmutableString, Map, NativeCallContext};
use xbus_core::Format;

use super::call::current;
use super::error::ScriptError;
use super::functions::R;
use super::reading::plain_text;
use super::values::{Items, JsonObject, List, Node};
use crate::table::{CsvOptions, CsvWriter, Table};

fn truth(value: &Dynamic) -> R<bool> {
    value.as_bool().map_err(|kind| {
        ScriptError::text(format!(
            "the function must give true or false, it gave a {kind}"
        ))
        .into()
    })
}

impl IntoIterator for List {
    type Item = Dynamic;
    type IntoIter = Box<dyn Iterator<Item = Dynamic>>;

    fn into_iter(self) -> Self::IntoIter {
        Box::new(self.iter())
    }
}

pub(super) fn register(engine: &mut rhai::Engine) {
    engine
        .register_type_with_name::<List>("list")
        .register_iterator::<List>()
        .register_fn("list", List::empty)
        .register_fn("len", |l: &mut List| l.len() as INT)
        .register_get("len", |l: &mut List| l.len() as INT)
        .register_fn("is_empty", |l: &mut List| l.len() == 0)
        .register_get("is_empty", |l: &mut List| l.len() == 0)
        .register_indexer_get(|l: &mut List, at: INT| -> R<Dynamic> { Ok(l.index(at)?) })
        .register_fn("push", |l: &mut List, value: Dynamic| -> R<()> {
            Ok(l.push(value)?)
        })
        .register_fn("append", |l: &mut List, other: List| -> R<()> {
            for item in other.iter() {
                l.push(item)?;
            }
            Ok(())
        })
        .register_fn("append", |l: &mut List, other: Array| -> R<()> {
            for item in other {
                l.push(item)?;
            }
            Ok(())
        })
        .register_fn("first", |l: &mut List| edge(l, 0))
        .register_fn("last", |l: &mut List| edge(l, l.len().saturating_sub(1)))
        .register_fn(
            "map",
            |context: NativeCallContext, l: &mut List, f: FnPtr| -> R<List> {
                let mut out = List::empty();
                for item in l.clone().iter() {
                    out.push(f.call_within_context(&context, (item,))?)?;
                }
                Ok(out)
            },
        )
        .register_fn(
            "filter",
            |context: NativeCallContext, l: &mut List, f: FnPtr| -> R<List> {
                let mut out = List::empty();
                for item in l.clone().iter() {
                    if truth(&f.call_within_context(&context, (item.clone(),))?)? {
                        out.push(item)?;
                    }
                }
                Ok(out)
            },
        )
        .register_fn(
            "find",
            |context: NativeCallContext, l: &mut List, f: FnPtr| -> R<Dynamic> {
                for item in l.clone().iter() {
                    if truth(&f.call_within_context(&context, (item.clone(),))?)? {
                        return Ok(item);
                    }
                }
                Ok(Dynamic::UNIT)
            },
        )
        .register_fn(
            "some",
            |context: NativeCallContext, l: &mut List, f: FnPtr| -> R<bool> {
                for item in l.clone().iter() {
                    if truth(&f.call_within_context(&context, (item,))?)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            },
        )
        .register_fn(
            "all",
            |context: NativeCallContext, l: &mut List, f: FnPtr| -> R<bool> {
                for item in l.clone().iter() {
                    if !truth(&f.call_within_context(&context, (item,))?)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            },
        )
        .register_fn(
            "reduce",
            |context: NativeCallContext, l: &mut List, f: FnPtr, start: Dynamic| -> R<Dynamic> {
                let mut sum = start;
                for item in l.clone().iter() {
                    sum = f.call_within_context(&context, (sum, item))?;
                }
                Ok(sum)
            },
        )
        .register_fn(
            "for_each",
            |context: NativeCallContext, l: &mut List, f: FnPtr| -> R<()> {
                for item in l.clone().iter() {
                    let _: Dynamic = f.call_within_context(&context, (item,))?;
                }
                Ok(())
            },
        )
        .register_fn("join", |l: &mut List, separator: &str| {
            join(l.clone().iter(), separator)
        })
        .register_fn("join", |a: &mut Array, separator: &str| {
            join(a.clone().into_iter(), separator)
        })
        .register_fn("contains", |l: &mut List, wanted: &str| -> bool {
            l.clone().iter().any(|item| {
                item.read_lock::<ImmutableString>()
                    .is_some_and(|text| text.as_str() == wanted)
            })
        })
        .register_fn("contains", |l: &mut List, wanted: INT| -> bool {
            l.clone().iter().any(|item| item.as_int() == Ok(wanted))
        })
        .register_fn("to_array", |l: &mut List| {
            l.clone().iter().collect::<Array>()
        })
        .register_fn("to_string", |l: &mut List| -> R<String> {
            let mut out = String::new();
            let limit = current()?.shared.limits.output_size;
            super::output::write_json(&mut out, &Dynamic::from(l.clone()), limit, 0)?;
            Ok(out)
        })
        .register_fn("csv", |l: List| csv_list(&l, None))
        .register_fn("csv", |l: List, o: Map| csv_list(&l, Some(&o)))
        .register_fn("csv", |a: Array| write_csv(a.into_iter(), None))
        .register_fn("csv", |a: Array, o: Map| write_csv(a.into_iter(), Some(&o)))
        .register_fn("csv", |text: ImmutableString| read_csv(&text, None))
        .register_fn("csv", |text: ImmutableString, o: Map| {
            read_csv(&text, Some(&o))
        });
}

fn edge(list: &List, at: usize) -> Dynamic {
    if list.len() == 0 {
        Dynamic::UNIT
    } else {
        list.get(at)
    }
}

fn join(items: impl Iterator<Item = Dynamic>, separator: &str) -> R<String> {
    let limit = current()?.shared.limits.string_size;
    let mut out = String::new();
    for (at, item) in items.enumerate() {
        if at > 0 {
            out.push_str(separator);
        }
        out.push_str(&plain_text(&item)?);
        if out.len() > limit {
            return Err(
                ScriptError::text(format!("the text would be larger than {limit} bytes")).into(),
            );
        }
    }
    Ok(out)
}

/// Options as a script writes them: `#{separator: ";", quote: "'", header: false, columns: […]}`.
fn options(map: Option<&Map>) -> Result<CsvOptions, ScriptError> {
    let mut options = CsvOptions::default();
    for (name, value) in map.into_iter().flatten() {
        let byte = || {
            let text = plain_text(value)?;
            match text.as_bytes() {
                [byte] if byte.is_ascii() => Ok(*byte),
                _ => Err(ScriptError::text(format!(
                    "csv: {name} must be one ASCII character"
                ))),
            }
        };
        match name.as_str() {
            "separator" => options.separator = byte()?,
            "quote" => options.quote = byte()?,
            "header" => {
                options.header = value
                    .as_bool()
                    .map_err(|_| ScriptError::text("csv: header is true or false"))?;
            }
            "columns" => {
                let mut columns = Vec::new();
                if let Some(list) = value.read_lock::<List>() {
                    for item in list.clone().iter() {
                        columns.push(plain_text(&item)?.into_owned());
                    }
                } else if let Some(array) = value.read_lock::<Array>() {
                    for item in array.iter() {
                        columns.push(plain_text(item)?.into_owned());
                    }
                } else {
                    return Err(ScriptError::text("csv: columns is a list of names"));
                }
                options.columns = Some(columns);
            }
            other => {
                return Err(ScriptError::text(format!(
                    "csv has no option '{other}': separator, quote, header, columns"
                )));
            }
        }
    }
    Ok(options)
}

fn read_csv(text: &ImmutableString, map: Option<&Map>) -> R<Dynamic> {
    let call = current()?;
    let table = Table::parse(text, &options(map)?).map_err(|what| call.bad_text(text, what))?;
    Ok(Dynamic::from(List::rows(table.into(), false)))
}

/// `csv(body)` reads, `csv(rows)` writes.
fn csv_list(list: &List, map: Option<&Map>) -> R<Dynamic> {
    if let (Items::Rows(table), true) = (&list.items, list.body) {
        if map.is_none() {
            return Ok(Dynamic::from(List::rows(table.clone(), false)));
        }
        let call = current()?;
        let options = options(map)?;
        let text = call.text(&call.message)?;
        let table =
            Table::parse(&text, &options).map_err(|what| call.unreadable(&call.message, &what))?;
        return Ok(Dynamic::from(List::rows(table.into(), false)));
    }
    if let (Items::Rows(table), None) = (&list.items, map.and_then(|map| map.get("columns"))) {
        // Rows that were read keep the order of their columns.
        let mut with = map.cloned().unwrap_or_default();
        if !table.columns.is_empty() {
            with.insert(
                "columns".into(),
                table
                    .columns
                    .iter()
                    .map(|c| Dynamic::from(c.clone()))
                    .collect::<Array>()
                    .into(),
            );
        }
        return write_csv(list.clone().iter(), Some(&with));
    }
    write_csv(list.clone().iter(), map)
}

fn write_csv(rows: impl Iterator<Item = Dynamic>, map: Option<&Map>) -> R<Dynamic> {
    let call = current()?;
    let mut options = options(map)?;
    let mut writer = CsvWriter::new(&options, call.shared.limits.output_size);
    let mut begun = false;
    for (number, row) in rows.enumerate() {
        let row = if row.is::<JsonObject>() || row.is::<List>() {
            super::values::copy(&row)?
        } else {
            row
        };
        if let Some(fields) = row.read_lock::<Map>() {
            let columns = options
                .columns
                .get_or_insert_with(|| fields.keys().map(ToString::to_string).collect());
            if !begun && options.header {
                writer
                    .row(columns.iter().map(String::as_str))
                    .map_err(ScriptError::text)?;
            }
            if let Some(stranger) = fields
                .keys()
                .find(|key| !columns.iter().any(|c| c == key.as_str()))
                && map.is_none_or(|map| !map.contains_key("columns"))
            {
                return Err(ScriptError::text(format!(
                    "csv: row {} has a column '{stranger}' that the first has not: name the columns",
                    number + 1
                ))
                .into());
            }
            let mut texts = Vec::with_capacity(columns.len());
            for column in columns.iter() {
                texts.push(match fields.get(column.as_str()) {
                    Some(value) => field(value)?,
                    None => ImmutableString::new(),
                });
            }
            writer
                .row(texts.iter().map(|t| t.as_str()))
                .map_err(ScriptError::text)?;
        } else if let Some(fields) = row.read_lock::<Array>() {
            if !begun
                && options.header
                && let Some(columns) = &options.columns
            {
                writer
                    .row(columns.iter().map(String::as_str))
                    .map_err(ScriptError::text)?;
            }
            let mut texts = Vec::with_capacity(fields.len());
            for value in fields.iter() {
                texts.push(field(value)?);
            }
            writer
                .row(texts.iter().map(|t| t.as_str()))
                .map_err(ScriptError::text)?;
        } else {
            return Err(ScriptError::text(format!(
                "csv: row {} is {}: rows are maps or lists",
                number + 1,
                super::values::described(&row)
            ))
            .into());
        }
        begun = true;
    }
    if let (false, true, Some(columns)) = (begun, options.header, &options.columns) {
        writer
            .row(columns.iter().map(String::as_str))
            .map_err(ScriptError::text)?;
    }
    let text: ImmutableString = writer.finish().map_err(ScriptError::text)?.into();
    call.remember(&text, Format::Csv);
    Ok(text.into())
}

fn field(value: &Dynamic) -> Result<ImmutableString, ScriptError> {
    if value.is::<Node>()
        || !(value.is::<JsonObject>() || value.is::<List>() || value.is_map() || value.is_array())
    {
        return plain_text(value);
    }
    Err(ScriptError::text(
        "csv: a field cannot hold a map or a list",
    ))
}

impl List {
    /// A list of texts.
    pub(crate) fn texts(texts: impl Iterator<Item = ImmutableString>) -> Self {
        Self::json(texts.map(crate::json::Json::Text).collect())
    }

    /// A list of JSON values.
    pub(crate) fn json(items: Vec<crate::json::Json>) -> Self {
        Self {
            items: Items::Json(items.into()),
            body: false,
        }
    }
}
