// Nothing but the flow: no editor, no log of messages. Ports come from the environment.
module.exports = {
  uiHost: "127.0.0.1",
  uiPort: Number(process.env.PORT),
  httpAdminRoot: false,
  flowFile: "flows.json",
  credentialSecret: false,
  logging: { console: { level: "warn" } },
  telemetry: { enabled: false },
};
