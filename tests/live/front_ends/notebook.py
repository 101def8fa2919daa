import marimo

app = marimo.App()


@app.cell
def hello():
    "hello"


if __name__ == "__main__":
    app.run()
