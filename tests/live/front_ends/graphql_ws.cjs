// Subscribe with graphql-ws and its defaults, which give up after five attempts; end with the first result or error.
const { createClient } = require("graphql-ws");

const client = createClient({ url: process.argv[2], webSocketImpl: require("ws") });
client.subscribe(
  { query: "{ hello }" },
  {
    next: () => process.exit(0),
    error: (error) => {
      console.error(error);
      process.exit(1);
    },
    complete: () => {},
  },
);
