//! The route language and xbus.yaml as tables of fields. Checking, the JSON Schema and the
//! reference pages all come from them. What stands under an adapter's word is that adapter's own.

use xbus_core::spec::{Field, Type};

const FORMATS: &[&str] = &["xml", "json", "csv", "form", "text", "bytes"];

/// `{ convert: { from, to } }`.
pub static CONVERSION: &[Field] = &[Field::new(
    "convert",
    Type::Object(&[
        Field::new(
            "from",
            Type::Choice(FORMATS),
            "Format of what comes in; left out: as its content type says.",
        ),
        Field::new("to", Type::Choice(FORMATS), "Format to make.").required(),
    ]),
    "A plain change of format.",
)
.required()];

const MANY: u64 = 1_000_000;
const MOST_WORKERS: u64 = 1024;

const FIRST_WAIT: Field =
    Field::new("first", Type::Duration, "Wait after the first failure.").default("1s");
const WAIT_FACTOR: Field = Field::new(
    "factor",
    Type::Number(1.0, 100.0),
    "Growth of the wait from one failure to the next.",
)
.default("2");
const LONGEST_WAIT: Field = Field::new("max", Type::Duration, "Longest wait.").default("5m");

/// `retry` of a step.
pub static RETRY: &[Field] = &[
    Field::new(
        "attempts",
        Type::Count(1, 1000),
        "Attempts in all, the first one included.",
    )
    .default("3"),
    FIRST_WAIT,
    WAIT_FACTOR,
    LONGEST_WAIT,
];

/// `retry` of a queue: for ever.
pub static LANE_RETRY: &[Field] = &[FIRST_WAIT, WAIT_FACTOR, LONGEST_WAIT];

/// How a queue is worked off: of receivers without a waiting sender.
pub static LANE: &[Field] = &[
    Field::new(
        "retry",
        Type::Object(LANE_RETRY),
        "Waits between attempts. A failed message is tried for ever, and what is behind it waits.",
    ),
    Field::new(
        "on_reject",
        Type::Choice(&["block", "park"]),
        "What becomes of a message that is rejected: it blocks like an outage, or is set aside.",
    )
    .default("block"),
    Field::new(
        "order_by",
        Type::Expression,
        "Messages of one key are handled in order, keys side by side. Left out: all in one order.",
    ),
    Field::new(
        "concurrency",
        Type::Count(1, MANY),
        "How many keys are worked off side by side (with `order_by`: 8).",
    ),
];

const REQUEST_SCHEMA: Field = Field::new(
    "request",
    Type::Asset,
    "What comes in: of a receiver the message, of a step the request that was made.",
);

/// `schema` of a receiver or of a step of `invoke`, when both ways are checked.
pub const SCHEMAS: &[Field] = &[
    REQUEST_SCHEMA,
    Field::new(
        "response",
        Type::Asset,
        "What goes back: of a receiver the reply, of a step the response.",
    ),
];

/// `schema` of a target or a compensation.
pub const REQUEST_SCHEMAS: &[Field] = &[REQUEST_SCHEMA];

/// Keys of a receiver, beside one adapter's or among them.
pub static RECEIVE: &[Field] = &[Field::new(
    "schema",
    Type::Either(&[Type::Asset, Type::Object(SCHEMAS)]),
    "An XML Schema in `transforms/` that messages are held against before anything runs; as a map, \
     replies too. What breaks a rule is a `client` fault that names line, element and rule.",
)];

const SCHEMA: Field = Field::new(
    "schema",
    Type::Either(&[Type::Asset, Type::Object(SCHEMAS)]),
    "An XML Schema in `transforms/` that the request is held against; as a map, the response too. A \
     response that breaks a rule is a `destination` fault.",
);

const TARGET_SCHEMA: Field = Field::new(
    "schema",
    Type::Either(&[Type::Asset, Type::Object(REQUEST_SCHEMAS)]),
    "An XML Schema in `transforms/` that the request is held against.",
);

/// The kinds of connections that can keep queues.
pub(crate) const BROKERS: &[&str] = &["amqp"];

/// `async` of a target.
pub static ASYNC: &[Field] = &[
    Field::new(
        "queue",
        Type::Text,
        "Name of the queue; left out: ROUTE.TARGET.",
    ),
    Field::new(
        "order_by",
        Type::Expression,
        "Messages of one key are delivered in order, keys side by side. It sees the made request \
         and, as `received`, the received message. Left out: all in one order.",
    ),
    Field::new(
        "retry",
        Type::Object(LANE_RETRY),
        "Waits between attempts, for ever.",
    ),
    Field::new(
        "on_reject",
        Type::Choice(&["block", "park"]),
        "What becomes of a message that the destination rejects: it blocks like an outage, or is \
         set aside and the next goes on.",
    )
    .default("block"),
    Field::new(
        "connection",
        Type::Connection(BROKERS),
        "The broker that keeps the queue; left out: where `queues` of xbus.yaml says.",
    ),
    Field::new(
        "partitions",
        Type::Count(1, 256),
        "With `order_by` at a broker: over how many queues the keys are spread. A key that waits \
         holds back the others of its partition.",
    )
    .default("16"),
    Field::new(
        "concurrency",
        Type::Count(1, MANY),
        "How many keys are delivered side by side. Left out: as many as the target's own \
         `concurrency` lets run, else 8.",
    ),
];

const BREAKER: &[Field] = &[
    Field::new(
        "failures",
        Type::Count(1, MANY),
        "Failures in a row after which the destination is spared.",
    )
    .default("5"),
    Field::new("open_for", Type::Duration, "For how long it is spared.").default("30s"),
];

const NAME: Field = Field::new(
    "name",
    Type::Text,
    "Unique in the route. Left out: the adapter's word, with a number where it is taken.",
);
const TRANSFORM: Field = Field::new(
    "transform",
    Type::Transform,
    "Makes the request: one transformation or a list, run in order.",
);
const WHEN: Field = Field::new("when", Type::Expression, "Left out when this is not true.");
const TIMEOUT: Field = Field::new(
    "timeout",
    Type::Duration,
    "How long one attempt may take. Left out: `defaults.timeout` of xbus.yaml.",
);
const STEP_RETRY: Field = Field::new(
    "retry",
    Type::Object(RETRY),
    "Attempts after an outage. Left out: one attempt.",
);
const STEP_BREAKER: Field = Field::new(
    "breaker",
    Type::Object(BREAKER),
    "Spares a destination that keeps failing.",
);
const CONCURRENCY: Field = Field::new(
    "concurrency",
    Type::Count(1, MANY),
    "How many run at once. Left out: no bound.",
);
const RATE: Field = Field::new(
    "rate",
    Type::Rate,
    "How many start in a time. Left out: no bound.",
);
const QUEUE_FOR: Field = Field::new(
    "queue_for",
    Type::Duration,
    "How long to wait for `concurrency` and `rate`; then the message is shed as overloaded.",
)
.default("5s");

/// Keys of a step of `invoke`, beside one adapter's.
pub static INVOKE: &[Field] = &[
    NAME,
    TRANSFORM,
    SCHEMA,
    WHEN,
    TIMEOUT,
    STEP_RETRY,
    STEP_BREAKER,
    CONCURRENCY,
    RATE,
    QUEUE_FOR,
    COMPENSATE,
];

const COMPENSATE: Field = Field::new(
    "compensate",
    Type::Any,
    "A step that undoes this one when a later part of the route fails. Its message is what this \
     step was sent, with the answer at hand as `response`.",
);

/// Keys of a target of `distribute` and `on_fault`, beside one adapter's.
pub static TARGET: &[Field] = &[
    NAME,
    TRANSFORM,
    TARGET_SCHEMA,
    WHEN,
    Field::new(
        "otherwise",
        Type::Bool,
        "Taken when no `when` of the list was true.",
    )
    .default("false"),
    Field::new(
        "async",
        Type::Either(&[Type::Bool, Type::Object(ASYNC)]),
        "Delivered from a queue of its own, in order, tried until it succeeds.",
    ),
    TIMEOUT,
    STEP_RETRY,
    STEP_BREAKER,
    CONCURRENCY,
    RATE,
    QUEUE_FOR,
    COMPENSATE,
];

/// Keys of the step under `compensate`, beside one adapter's.
pub static UNDO: &[Field] = &[
    NAME,
    TRANSFORM,
    TARGET_SCHEMA,
    TIMEOUT,
    STEP_RETRY,
    STEP_BREAKER,
    CONCURRENCY,
    RATE,
    QUEUE_FOR,
];

/// `reply`.
pub static REPLY: &[Field] = &[
    Field::new(
        "transform",
        Type::Transform,
        "Makes the answer: one transformation or a list, run in order.",
    ),
    Field::new(
        "status",
        Type::Count(200, 599),
        "HTTP status in place of the usual one.",
    ),
    Field::new(
        "content_type",
        Type::Text,
        "Content type in place of what the transformation says. Text that it has made is written in the \
         charset that this names.",
    ),
    Field::new(
        "headers",
        Type::Map(&Type::Template),
        "Further headers of the answer.",
    ),
];

/// A route file.
pub static ROUTE: &[Field] = &[
    Field::new(
        "route",
        Type::Text,
        "The route's name, unique in the installation. Left out: the file's stem.",
    ),
    Field::new("description", Type::Text, "What it is for."),
    Field::new(
        "receive",
        Type::Any,
        "Where its messages come from: exactly one receiver.",
    )
    .required(),
    Field::new(
        "when",
        Type::Expression,
        "A message for which this is not true is acknowledged and counted as filtered.",
    ),
    Field::new(
        "once",
        Type::Object(&[
            Field::new(
                "key",
                Type::Expression,
                "What tells messages apart; a message without one is not compared.",
            )
            .required(),
            Field::new("keep", Type::Duration, "How long a key is remembered.").default("1d"),
        ]),
        "Idempotent receiver: a key that was seen within `keep` is answered with the stored \
         outcome and not processed again.",
    ),
    Field::new(
        "namespaces",
        Type::Map(&Type::Text),
        "XML prefixes for every expression and script of the route.",
    ),
    Field::new(
        "keys",
        Type::Map(&Type::Expression),
        "Business keys: kept in the journal and searchable.",
    ),
    CONCURRENCY,
    RATE,
    QUEUE_FOR,
    Field::new(
        "invoke",
        Type::Any,
        "Request/response steps, one after the other.",
    ),
    Field::new(
        "distribute",
        Type::Any,
        "Request/acknowledgement targets; each gets the same message.",
    ),
    Field::new(
        "unmatched",
        Type::Choice(&["drop"]),
        "`drop`: a message that no `when` of `distribute` matched is filtered instead of failed.",
    ),
    Field::new(
        "rollback",
        Type::Choice(&["none"]),
        "`none`: all targets run in the order written and nothing is undone.",
    ),
    Field::new(
        "reply",
        Type::Object(REPLY),
        "What the sender of the message gets back.",
    ),
    Field::new(
        "on_fault",
        Type::Any,
        "Targets that get the fault message, as JSON.",
    ),
    Field::new("enabled", Type::Bool, "`false`: checked, not started.").default("true"),
];

/// xbus.yaml, apart from what adapters add.
pub static BUS: &[Field] = &[
    Field::new(
        "name",
        Type::Text,
        "The bus's name. Left out: the folder's.",
    ),
    Field::new(
        "node",
        Type::Text,
        "This bus's name among several on the same folders. Left out: the host's.",
    ),
    Field::new("store", Type::Path, "What the bus keeps.").default("data/"),
    Field::new(
        "workers",
        Type::Count(1, MOST_WORKERS),
        "Threads that callers are served on; what has no caller shares as many others. Left out: as many as \
         there are cores. Work that takes long, the log's writer and files have threads of their own.",
    ),
    Field::new(
        "admin",
        Type::Object(ADMIN),
        "The listener of the API, health and metrics.",
    ),
    Field::new(
        "queues",
        Type::Either(&[
            Type::Choice(&["embedded"]),
            Type::Object(&[Field::new(
                "connection",
                Type::Connection(BROKERS),
                "The broker that keeps the queues.",
            )
            .required()]),
        ]),
        "Where the queues of async targets live.",
    )
    .default("embedded"),
    Field::new(
        "connections",
        Type::Map(&Type::Any),
        "Connections by name; each has exactly one kind.",
    ),
    Field::new(
        "journal",
        Type::Object(JOURNAL),
        "What is kept of messages that are through.",
    ),
    Field::new("defaults", Type::Object(DEFAULTS), "Defaults of routes."),
    Field::new(
        "namespaces",
        Type::Map(&Type::Text),
        "XML prefixes for every route.",
    ),
    Field::new("log", Type::Object(LOG), "Logs, on standard error."),
];

/// `admin` of xbus.yaml.
pub static ADMIN: &[Field] = &[
    Field::new("listen", Type::Text, "Address and port.").default("127.0.0.1:9090"),
    Field::new(
        "token",
        Type::Secret,
        "What clients show as bearer token. Empty: none, and the API answers on loopback only.",
    ),
];

/// `journal` of xbus.yaml.
pub static JOURNAL: &[Field] = &[
    Field::new(
        "payloads",
        Type::Choice(&["none", "failed", "all"]),
        "Whose headers and bodies are kept, for `messages show` and `replay`.",
    )
    .default("failed"),
    Field::new("keep", Type::Duration, "For how long.").default("30d"),
    Field::new(
        "max_size",
        Type::Size,
        "What the journal may take of the disk; the oldest goes first.",
    )
    .default("10GiB"),
];

/// `defaults` of xbus.yaml.
pub static DEFAULTS: &[Field] = &[
    Field::new("timeout", Type::Duration, "How long one attempt may take.").default("30s"),
    Field::new("max_body", Type::Size, "Largest body that is taken.").default("10MiB"),
];

/// `log` of xbus.yaml.
pub static LOG: &[Field] = &[
    Field::new(
        "format",
        Type::Choice(&["human", "json"]),
        "Lines for people, or one JSON object a line.",
    )
    .default("human"),
    Field::new(
        "level",
        Type::Choice(&["error", "warn", "info", "debug", "trace"]),
        "The least important that is shown.",
    )
    .default("info"),
];

/// What the others do not lead to by themselves.
pub(crate) static ALL: &[&[Field]] = &[
    BUS, ROUTE, RECEIVE, INVOKE, TARGET, UNDO, REPLY, ASYNC, LANE, LANE_RETRY, RETRY, SCHEMAS,
    CONVERSION, ADMIN, JOURNAL, DEFAULTS, LOG,
];
