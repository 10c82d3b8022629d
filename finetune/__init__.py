"""From a recipe to a merged model. Stands on `export`, which never imports from here."""
