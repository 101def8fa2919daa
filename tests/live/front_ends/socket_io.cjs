// Connect once with socket.io-client, by WebSocket only; end when it is in.
const { io } = require("socket.io-client");

const socket = io(process.argv[2], { transports: ["websocket"] });
socket.on("connect", () => process.exit(0));
