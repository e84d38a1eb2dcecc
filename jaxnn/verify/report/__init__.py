"""How it is presented: data <- text <- figure <- html, one way."""
